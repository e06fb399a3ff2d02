"""open_clip checkpoints: a named architecture, or a folder with `open_clip_config.json` as on the model hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from clipchoir_export.checkpoint_files import read_float32
from clipchoir_export.errors import CheckpointError
from clipchoir_export.state_dicts import load_strictly
from clipchoir_export.towers import Architecture, Towers

CONFIG_FILE = "open_clip_config.json"
# Not weights; in checkpoints of the first CLIP.
_LEGACY = {"input_resolution", "context_length", "vocab_size", "attn_mask"}


def describe(architecture: str | None, path: Path, checkpoint: str) -> Architecture:
    """Architecture of a checkpoint on disk, or of a named model with one of its published tags.

    Raises:
        CheckpointError: the folder has no usable config, the name or the tag is unknown, or the tag was trained with
            the other activation than the named model has.
    """
    model = _model_config(architecture, path)
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


def load(architecture: str | None, path: Path) -> Towers:
    """Load both towers from a checkpoint file or folder.

    Raises:
        CheckpointError: a file is missing or unreadable, or its keys or shapes are not the config's.
    """
    model = open_clip.CLIP(**_model_config(architecture, path))
    state = {name: tensor for name, tensor in read_float32(path).items() if name not in _LEGACY}
    try:
        load_strictly(model, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Towers(image=model.visual, text=_TextTower(model))


def _model_config(architecture: str | None, path: Path) -> Mapping[str, Any]:
    return _read_config(path)["model_cfg"] if architecture is None else _named_config(architecture)


class _TextTower(nn.Module):
    def __init__(self, model: open_clip.CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(tokens)
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
