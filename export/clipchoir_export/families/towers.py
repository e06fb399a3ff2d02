"""The two towers of a CLIP pair, without their weights until these are needed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError
from clipchoir_steps.label_sets.tokenizer import CONTEXT_LENGTH, END_OF_TEXT

VOCABULARY = END_OF_TEXT + 1
CLIP_TOKENIZER = f"a repository carries CLIP's own tokenizer, with {VOCABULARY:,} tokens and {CONTEXT_LENGTH} a prompt"
"""Why a family refuses a config with another one."""


@dataclass(frozen=True)
class Architecture:
    """What the rest of the repository has to know about an encoder; known before any weight is read."""

    image_size: int  # pixels
    embedding_dim: int
    mean: tuple[float, float, float]  # of pixels scaled to 0..1
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Tower:
    """One tower: how to build its module, and where each of its tensors is stored.

    An image tower takes float32 (N, 3, S, S) normalised pixels, a text tower int64 (N, 77) token ids; both return
    (N, D), not of length 1.

    Attributes:
        build: makes the module, uninitialised, on torch's default device.
        weights: every tensor of the module's `state_dict`, of the same shape.
    """

    build: Callable[[], nn.Module]
    weights: Mapping[str, StoredTensor]

    def skeleton(self) -> nn.Module:
        """The module in eval mode: parameters on the meta device, computed buffers in memory."""
        with torch.device("meta"):
            module = self.build()
        _compute_buffers(module)
        return module.eval().requires_grad_(False)

    def load(self) -> nn.Module:
        """The module with all of its weights in memory, float32.

        Raises:
            CheckpointError: a weight cannot be read.
        """
        module = self.skeleton()
        module.load_state_dict({name: stored.read().float() for name, stored in self.weights.items()}, assign=True)
        return module.requires_grad_(False)

    @contextlib.contextmanager
    def streamed(self, dtype: torch.dtype = torch.float32) -> Iterator[nn.Module]:
        """The module in a type of choice, with the weights of one layer at a time in memory.

        Each layer of a block reads its weights when it is called and drops them when it is done; what stands outside
        the blocks (embeddings, last norm, projection) is held throughout. Every call reads all weights: give it large
        batches.
        """
        module = self.skeleton().to(dtype)
        handles = []
        for layer, names in _layers(module):

            def fetch(_layer: nn.Module, _inputs: object, names: list[str] = names) -> None:
                for name in names:
                    _assign(module, name, self.weights[name].read().to(dtype))

            def drop(_layer: nn.Module, _inputs: object, _output: object, names: list[str] = names) -> None:
                for name in names:
                    _assign(module, name, torch.empty(self.weights[name].shape, dtype=dtype, device="meta"))

            handles += [layer.register_forward_pre_hook(fetch), layer.register_forward_hook(drop, always_call=True)]
        streamed_names = {name for _, names in _layers(module) for name in names}
        for name, stored in self.weights.items():
            if name not in streamed_names:
                _assign(module, name, stored.read().to(dtype))
        try:
            with torch.inference_mode():
                yield module
        finally:
            for handle in handles:
                handle.remove()


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """The parts of blocks that hold weights, each with the names of its tensors.

    Attention counts as one part: its code reads the weights of its projections without calling them.
    """
    blocks = [
        f"{name}.{index}"
        for name, each in module.named_modules()
        if isinstance(each, nn.ModuleList)
        for index in range(len(each))
    ]
    whole = ""
    for name, each in module.named_modules():
        in_block = any(name == block or name.startswith(block + ".") for block in blocks)
        if not in_block or (whole and name.startswith(whole + ".")):
            continue
        is_attention = type(each).__name__.endswith("Attention")
        whole = name if is_attention else ""
        names = [f"{name}.{key}" for key, _ in each.named_parameters(recurse=is_attention)]
        if names:
            yield each, names


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    if key in owner._parameters:
        owner._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[key] = tensor


def _compute_buffers(module: nn.Module) -> None:
    """Buffers that no checkpoint holds (causal masks, rotary tables) cannot stay on the meta device."""
    for name, each in module.named_modules():
        missing = [key for key in each._non_persistent_buffers_set if getattr(each, key) is not None]
        for key in missing:
            each._buffers[key] = torch.empty_like(getattr(each, key), device="cpu")
        if hasattr(each, "init_non_persistent_buffers"):  # timm's
            each.init_non_persistent_buffers()
        elif missing == ["attn_mask"]:  # open_clip's: each token sees itself and those before it
            each._buffers["attn_mask"].fill_(float("-inf")).triu_(1)
        elif missing:
            raise CheckpointError(
                f"{name}: cannot compute its {', '.join(missing)}; this architecture is not supported"
            )
