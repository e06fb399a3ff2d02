"""open_clip checkpoints: a named architecture, or a folder with `open_clip_config.json` as on the model hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from clipchoir_export.checkpoints.checks import check_shapes
from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families.towers import Architecture, Tower

CONFIG_FILE = "open_clip_config.json"
# The first four are no weights; they are in checkpoints of the first CLIP.
_NOT_IN_A_TOWER = {"input_resolution", "context_length", "vocab_size", "attn_mask", "logit_scale", "logit_bias"}


def describe(architecture: str | None, path: Path, checkpoint: str) -> Architecture:
    """Architecture of a checkpoint on disk, or of a named model with one of its published tags.

    Raises:
        CheckpointError: the folder has no usable config, the name or the tag is unknown, or the tag was trained with
            the other activation than the named model has.
    """
    model = model_config(architecture, path)
    if architecture is None:
        preprocessing = _read_config(path).get("preprocess_cfg", {})
    elif path.exists():
        preprocessing = {}
    else:
        preprocessing = _tag_config(architecture, checkpoint, bool(model.get("quick_gelu", False)))
    return Architecture(
        image_size=model["vision_cfg"]["image_size"],
        embedding_dim=model["embed_dim"],
        mean=tuple(preprocessing.get("mean", OPENAI_DATASET_MEAN)),
        std=tuple(preprocessing.get("std", OPENAI_DATASET_STD)),
    )


def open_towers(model_config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> tuple[Tower, Tower]:
    """Both towers of a checkpoint; no weight is read.

    Args:
        model_config: as `model_config` returns it.
        tensors: of the whole checkpoint.

    Returns:
        The image tower and the text tower.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes differ; the message names them.
    """
    with torch.device("meta"):
        whole = build(model_config)
    wanted = {name: tensor for name, tensor in whole.state_dict().items() if name not in _NOT_IN_A_TOWER}
    own_text = isinstance(whole, open_clip.CustomTextCLIP)
    if own_text and "text_projection" in tensors:  # an older way of storing such a model
        tensors = {_below_text(name): tensor for name, tensor in tensors.items()}
    check_shapes(wanted, {name: tensor for name, tensor in tensors.items() if name not in _NOT_IN_A_TOWER})
    image = {name.removeprefix("visual."): tensors[name] for name in wanted if name.startswith("visual.")}
    text = {
        name.removeprefix("text.") if own_text else f"clip.{name}": tensors[name]
        for name in wanted
        if not name.startswith("visual.")
    }
    return Tower(lambda: build(model_config).visual, image), Tower(lambda: _text_tower(build(model_config)), text)


def build(model_config: Mapping[str, Any]) -> Any:
    """A whole open_clip model, uninitialised.

    Raises:
        CheckpointError: its text tower is not CLIP's.
    """
    config = dict(model_config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise CheckpointError("this open_clip architecture has another text tower than CLIP's; it is not supported")
    return kind(**config)


def _below_text(name: str) -> str:
    parts = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    return f"text.{name}" if name.startswith(parts) else name


def _text_tower(model: Any) -> nn.Module:
    return model.text if isinstance(model, open_clip.CustomTextCLIP) else _TextPart(model)


def model_config(architecture: str | None, path: Path) -> Mapping[str, Any]:
    """How to build a named architecture, or the one that a checkpoint's folder describes.

    Raises:
        CheckpointError: there is no such architecture, or no usable config.
    """
    return _read_config(path)["model_cfg"] if architecture is None else _named_config(architecture)


class _TextPart(nn.Module):
    """The text half of a CLIP."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        del clip.visual, clip.logit_scale
        clip.logit_bias = None
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.clip.encode_text(tokens)
        return embeddings


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise CheckpointError(f'{folder} is a file and does not say how the model is built: name its "architecture"')
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as an open_clip config: {error}") from error
    if "model_cfg" not in config:
        raise CheckpointError(f'{path}: key "model_cfg" is missing; an open_clip config has it')
    return config


def _named_config(architecture: str) -> Mapping[str, Any]:
    config: Mapping[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        raise CheckpointError(f'open_clip has no architecture "{architecture}"; open_clip.list_models() lists them')
    return config


def pretrained_config(architecture: str, tag: str) -> Mapping[str, Any]:
    """What open_clip knows of a published checkpoint.

    Raises:
        CheckpointError: there is no such tag; the message lists those that there are.
    """
    config: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise CheckpointError(f'open_clip has no checkpoint "{tag}" of {architecture}; it has: {known}')
    return config


def _tag_config(architecture: str, tag: str, quick_gelu: bool) -> Mapping[str, Any]:
    config = pretrained_config(architecture, tag)
    if bool(config.get("quick_gelu", False)) != quick_gelu:
        right = architecture.removesuffix("-quickgelu") if quick_gelu else f"{architecture}-quickgelu"
        raise CheckpointError(
            f'checkpoint "{tag}" was not trained with the activation of {architecture}; the architecture is {right}'
        )
    return config
