"""The ensemble's answer, computed the plain way: PIL, torch, and the formula in float64.

Nothing here comes from the code under test but the checkpoints.
"""

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "demo" / "checkpoints"
SHARPNESS = {"metaclip": 2.3, "evaclip": 2.0}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def pixels(image: Image.Image, size: int = 224) -> Image.Image:
    """What the encoders see: upright, RGB, squashed."""
    orientation = image.getexif().get(0x0112)
    if orientation == 6 and 0x011A in image.getexif():  # PIL's own turning fails on some broken tags
        upright = image.transpose(Image.Transpose.ROTATE_270)
    else:
        upright = ImageOps.exif_transpose(image)
    return upright.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def normalised(image: Image.Image, sharpness: float) -> Tensor:
    """The seed's transforms of one squashed image: sharpen, to tensor, normalise. (3, S, S)"""
    sharpened = np.asarray(ImageEnhance.Sharpness(image).enhance(sharpness))
    return (torch.from_numpy(sharpened.copy()).permute(2, 0, 1).float() / 255 - MEAN) / STD


@cache
def metaclip() -> open_clip.CLIP:
    """The demo's open_clip model, as open_clip itself loads it."""
    return open_clip.create_model(f"local-dir:{CHECKPOINTS / 'demo-metaclip'}").eval()


@dataclass(frozen=True)
class HuggingFaceEvaClip:
    """Forward pass of the published EVA-CLIP modelling code, written out on its own tensor names."""

    tensors: dict[str, Tensor]
    config: dict[str, dict[str, int | float | bool]]

    @classmethod
    def load(cls, folder: Path) -> "HuggingFaceEvaClip":
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        return cls(tensors, json.loads((folder / "config.json").read_text()))

    def encode_image(self, images: Tensor) -> Tensor:
        config, t = self.config["vision_config"], self.tensors
        x = F.conv2d(
            images,
            t["vision_model.embeddings.patch_embedding.weight"],
            t["vision_model.embeddings.patch_embedding.bias"],
            stride=int(config["patch_size"]),
        )
        x = x.flatten(2).transpose(1, 2)  # (N, patches, width)
        token = t["vision_model.embeddings.class_embedding"].expand(len(x), 1, -1)
        x = torch.cat([token, x], dim=1) + t["vision_model.embeddings.position_embedding.weight"]
        eps = float(config["layer_norm_eps"])
        for index in range(int(config["num_hidden_layers"])):
            layer = f"vision_model.encoder.layers.{index}."
            norms = [t[f"{layer}layer_norm{number}.weight"] for number in (1, 2)]
            if config["post_layernorm"]:
                x = x + F.rms_norm(self._attention(x, layer, config, None), norms[0].shape, norms[0], eps)
                x = x + F.rms_norm(self._mlp(x, layer), norms[1].shape, norms[1], eps)
            else:
                x = x + self._attention(F.rms_norm(x, norms[0].shape, norms[0], eps), layer, config, None)
                x = x + self._mlp(F.rms_norm(x, norms[1].shape, norms[1], eps), layer)
        norm = t["vision_model.post_layernorm.weight"]
        return F.rms_norm(x[:, 0], norm.shape, norm, eps) @ t["visual_projection.weight"].T

    def encode_text(self, tokens: Tensor) -> Tensor:
        config, t = self.config["text_config"], self.tensors
        x = t["text_model.embeddings.token_embedding.weight"][tokens]
        x = x + t["text_model.embeddings.position_embedding.weight"]
        mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
        for index in range(int(config["num_hidden_layers"])):
            layer = f"text_model.encoder.layers.{index}."
            x = x + self._attention(self._layer_norm(x, f"{layer}layer_norm1"), layer, config, mask)
            x = x + self._mlp(self._layer_norm(x, f"{layer}layer_norm2"), layer)
        x = self._layer_norm(x, "text_model.final_layer_norm")
        pooled = x[torch.arange(len(x)), tokens.argmax(dim=-1)]
        return pooled @ t["text_projection.weight"].T

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.tensors[f"{name}.bias"], 1e-5)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _attention(self, x: Tensor, layer: str, config: dict[str, int | float | bool], mask: Tensor | None) -> Tensor:
        heads = int(config["num_attention_heads"])
        q, k, v = (
            self._linear(x, f"{layer}self_attn.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = (logits if mask is None else logits + mask).softmax(dim=-1)
        return self._linear((weights @ v).transpose(1, 2).flatten(2), f"{layer}self_attn.out_proj")

    def _mlp(self, x: Tensor, layer: str) -> Tensor:
        return self._linear(F.gelu(self._linear(x, f"{layer}mlp.fc1")), f"{layer}mlp.fc2")


@cache
def evaclip() -> HuggingFaceEvaClip:
    """The demo's EVA-CLIP model."""
    return HuggingFaceEvaClip.load(CHECKPOINTS / "demo-evaclip")


def models() -> dict[str, open_clip.CLIP | HuggingFaceEvaClip]:
    """The demo pair, in the ensemble's order."""
    return {"metaclip": metaclip(), "evaclip": evaclip()}


def prompts_by_class(label_set: Path) -> dict[str, list[str]]:
    """A label set file, expanded by hand."""
    content = tomllib.loads(label_set.read_text())
    return {
        name: [template.replace("{}", name) for template in content["templates"]]
        + content.get("extra", {}).get(name, [])
        for name in content["classes"]
    }


def image_embeddings(images: list[Image.Image], encoder: str) -> NDArray[np.float64]:
    """Unit-length embeddings of squashed images, (N, D)."""
    batch = torch.stack([normalised(image, SHARPNESS[encoder]) for image in images])
    with torch.inference_mode():
        return F.normalize(models()[encoder].encode_image(batch).double(), dim=-1).numpy()


@cache
def text_embeddings(label_set: Path, encoder: str) -> NDArray[np.float64]:
    """Unit-length embeddings of all prompts, (P, D)."""
    prompts = [prompt for each in prompts_by_class(label_set).values() for prompt in each]
    tokens = open_clip.SimpleTokenizer()(prompts)
    with torch.inference_mode():
        return F.normalize(models()[encoder].encode_text(tokens).double(), dim=-1).numpy()


@dataclass(frozen=True)
class Expected:
    """What the service should answer."""

    scores: NDArray[np.float64]  # (N, C)
    encoder_scores: NDArray[np.float64]  # (N, E, C)
    embeddings: dict[str, NDArray[np.float64]]


def classify(
    images: list[Image.Image],
    label_set: Path,
    weights: tuple[float, float] = (0.5, 0.5),
    logit_scale: float = 100.0,
    drop_below: float = 0.0,
) -> Expected:
    """Scores of squashed images by the formula, in float64."""
    embeddings = {encoder: image_embeddings(images, encoder) for encoder in models()}
    counts = [len(prompts) for prompts in prompts_by_class(label_set).values()]
    probabilities = []
    for encoder, embedding in embeddings.items():
        logits = logit_scale * embedding @ text_embeddings(label_set, encoder).T
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities.append(exponentials / exponentials.sum(axis=1, keepdims=True))
    mixed = sum(weight * each for weight, each in zip(weights, probabilities, strict=True)) / sum(weights)

    def scores(p: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = []
        for row in p:
            kept = np.where(row <= drop_below, 0, row) if drop_below else row
            kept = kept if kept.any() else row
            means = np.array([part.mean() for part in np.split(kept, np.cumsum(counts)[:-1])])
            rows.append(means / means.sum())
        return np.array(rows)

    return Expected(scores(mixed), np.stack([scores(each) for each in probabilities], axis=1), embeddings)
