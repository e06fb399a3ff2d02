"""What an encoder costs: parameters, and floating-point operations per row of input."""

import contextlib
import io

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clipchoir_export.families.towers import Tower


def parameters(tower: Tower) -> int:
    """How many numbers a tower holds."""
    return sum(torch.Size(stored.shape).numel() for stored in tower.weights.values())


def flops(module: nn.Module, example: torch.Tensor) -> int:
    """Operations of one forward pass of `example`, without computing it; a multiply-add counts as two."""
    module = module.to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        module(example.to("meta"))
    return counter.get_total_flops()


def flops_per_image(image_tower: nn.Module, image_size: int) -> int:
    """Operations of an image tower for one image."""
    return flops(image_tower, torch.empty(1, 3, image_size, image_size))
