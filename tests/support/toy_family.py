"""A whole family of encoders in one file, as it would lie in `clipchoir_export/families/`: two tiny linear towers.

A checkpoint is a folder with `toy.json` (`image_size`, `width`) and the weights of `ToyImage` and `ToyText` below
`image.` and `text.`.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipchoir_export.checkpoints.checks import check_config, check_shapes
from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import Family, PublishedFile
from clipchoir_export.families.towers import Architecture, Tower
from clipchoir_export.spec import EncoderSpec


class ToyImage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=32, stride=32)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, S, S)
        return torch.tanh(self.patches(x)).mean(dim=(2, 3))  # (N, width)


class ToyText(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(49408, width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # (N, 77)
        return self.project(self.tokens(tokens).mean(dim=1))  # (N, width)


class _Toy:
    published_names = ""

    def describe(self, encoder: EncoderSpec, path: Path) -> Architecture:
        config = self.identity(encoder, path)
        return Architecture(config["image_size"], config["width"], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def identity(self, encoder: EncoderSpec, path: Path) -> Mapping[str, Any]:
        del encoder  # there are no named architectures
        try:
            config: Mapping[str, Any] = json.loads((path / "toy.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / 'toy.json'}: cannot be read: {error}") from error
        check_config("toy", config, known={"image_size", "width"}, only={})
        return config

    def image_tower(self, encoder: EncoderSpec, path: Path) -> nn.Module:
        return ToyImage(self.identity(encoder, path)["width"])

    def open_towers(
        self, encoder: EncoderSpec, path: Path, tensors: Mapping[str, StoredTensor], *, fused_qkv: bool
    ) -> tuple[Tower, Tower]:
        del fused_qkv  # there is no attention
        width = self.identity(encoder, path)["width"]
        builders: dict[str, Callable[[], nn.Module]] = {
            "image.": partial(ToyImage, width),
            "text.": partial(ToyText, width),
        }
        with torch.device("meta"):
            wanted = {
                prefix + name: tensor
                for prefix, build in builders.items()
                for name, tensor in build().state_dict().items()
            }
        check_shapes(wanted, tensors)
        image, text = (
            Tower(build, {name.removeprefix(prefix): tensors[name] for name in wanted if name.startswith(prefix)})
            for prefix, build in builders.items()
        )
        return image, text

    def published_file(self, encoder: EncoderSpec) -> PublishedFile | None:
        del encoder
        return None


FAMILY: Family = _Toy()
