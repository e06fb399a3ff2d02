"""The two demo checkpoints as models. Each folder's config says how the model is built; the weights go beside it.

`demo-metaclip` is an open_clip `CLIP` with QuickGELU, stored as open_clip stores models for a hub. `demo-evaclip` has
the towers of EVA-CLIP (RMSNorm, post-norm, no head bias), stored in the key layout of the Hugging Face checkpoints.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipchoir_export.families.eva_clip import EvaClipConfig, build_image_tower, build_text_tower, to_hugging_face

CHECKPOINTS = Path(__file__).parent / "checkpoints"
LOGIT_SCALE = 100.0
SHARPNESS = {"demo-metaclip": 2.3, "demo-evaclip": 2.0}
"""The pairs, and the factor by which each one's pictures are sharpened when it is served."""


class PatchProjection(nn.Conv2d):
    """A convolution whose stride is its kernel, as one matrix product: its backward pass takes a fifth of the time."""

    def forward(self, images: Tensor) -> Tensor:
        size = self.kernel_size[0]
        patches = images.unfold(2, size, size).unfold(3, size, size)  # (N, 3, rows, columns, size, size)
        count, _, rows, columns = patches.shape[:4]
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(count, rows * columns, -1)
        projected = nn.functional.linear(flat, self.weight.flatten(1), self.bias)
        return projected.transpose(1, 2).reshape(count, -1, rows, columns)


class Pair(nn.Module):
    """An image and a text tower that share a space, in training."""

    image: nn.Module
    text: nn.Module

    @property
    def token_embedding(self) -> nn.Embedding:
        """The table of token vectors."""
        return cast(nn.Embedding, self.text.token_embedding)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 tokens (M, L), L at most 77 -> (M, D).

        As open_clip computes it, which takes 77 tokens only; most of them would be padding here.
        """
        text: Any = self.text
        length = tokens.shape[1]
        rows = text.token_embedding(tokens) + text.positional_embedding[:length]
        rows = text.ln_final(text.transformer(rows, attn_mask=text.attn_mask[:length, :length]))
        return cast(Tensor, rows[torch.arange(len(rows)), tokens.argmax(dim=-1)] @ text.text_projection)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float32 images (N, 3, S, S) and int64 tokens (M, L) -> unit rows (N, D) and (M, D)."""
        image, text = self.image(images), self.encode_text(tokens)
        return nn.functional.normalize(image.float(), dim=-1), nn.functional.normalize(text.float(), dim=-1)

    def save(self, folder: Path) -> None:
        """Write the weights, in half precision, beside the config in `folder`."""
        raise NotImplementedError


class MetaClipPair(Pair):
    """An open_clip CLIP, from the `open_clip_config.json` in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        model: Any = open_clip.CLIP(**config["model_cfg"])
        self.text, self.image = model, model.visual
        model.visual.conv1.__class__ = PatchProjection

    def save(self, folder: Path) -> None:
        _write(folder / "open_clip_model.safetensors", self.text.state_dict() | {"logit_scale": _log_scale()})


class EvaClipPair(Pair):
    """The towers of an EVA-CLIP, from the `config.json` in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.config = EvaClipConfig.from_json(folder / "config.json")
        image: Any = build_image_tower(self.config)
        self.image, self.text = image, build_text_tower(self.config)
        image.patch_embed.proj.__class__ = PatchProjection

    def save(self, folder: Path) -> None:
        image, text = self.image.state_dict(), self.text.state_dict()
        _write(folder / "model.safetensors", to_hugging_face(image, text, _log_scale(), self.config))


def build(folder: Path) -> Pair:
    """The untrained pair that the config in `folder` describes."""
    return MetaClipPair(folder) if (folder / "open_clip_config.json").exists() else EvaClipPair(folder)


def _log_scale() -> Tensor:
    return torch.tensor(math.log(LOGIT_SCALE))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    unfinished = path.with_suffix(".part")
    stored = {}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().contiguous()
        stored[name] = tensor.half() if tensor.ndim else tensor  # the logit scale stays exact
    save_file(stored, unfinished, {"format": "pt"})
    unfinished.rename(path)
