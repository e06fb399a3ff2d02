"""open_clip checkpoints: a named architecture, or a folder with `open_clip_config.json` as on the model hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipchoir_export.errors import CheckpointError
from clipchoir_export.state_dicts import load_strictly
from clipchoir_export.towers import Architecture, Towers

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"


def describe(architecture: str | None, folder: Path, checkpoint: str) -> Architecture:
    """Architecture of a checkpoint folder, or of a named model with one of its published tags.

    Raises:
        CheckpointError: the folder has no usable config, the name or the tag is unknown, or the tag was trained with
            the other activation than the named model has.
    """
    if architecture is None:
        config = _read_config(folder)
        preprocessing = config.get("preprocess_cfg", {})
        model = config["model_cfg"]
    else:
        model = _named_config(architecture)
        preprocessing = _tag_config(architecture, checkpoint, bool(model.get("quick_gelu", False)))
    return Architecture(
        image_size=model["vision_cfg"]["image_size"],
        embedding_dim=model["embed_dim"],
        mean=tuple(preprocessing.get("mean", OPENAI_DATASET_MEAN)),
        std=tuple(preprocessing.get("std", OPENAI_DATASET_STD)),
    )


def load(folder: Path) -> Towers:
    """Load both towers from a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or unreadable, or its keys or shapes are not the config's.
    """
    model = open_clip.CLIP(**_read_config(folder)["model_cfg"])
    path = folder / WEIGHTS_FILE
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
        load_strictly(model, state)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Towers(image=model.visual, text=_TextTower(model))


class _TextTower(nn.Module):
    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(tokens)
        return embeddings


def _read_config(folder: Path) -> dict[str, Any]:
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


def _tag_config(architecture: str, tag: str, quick_gelu: bool) -> Mapping[str, Any]:
    config: Mapping[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise CheckpointError(f'open_clip has no checkpoint "{tag}" of {architecture}; it has: {known}')
    if bool(config.get("quick_gelu", False)) != quick_gelu:
        right = architecture.removesuffix("-quickgelu") if quick_gelu else f"{architecture}-quickgelu"
        raise CheckpointError(
            f'checkpoint "{tag}" was not trained with the activation of {architecture}; the architecture is {right}'
        )
    return config
