"""Encoders of every source behind one face."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import nn

from clipchoir_export.checkpoints import hub
from clipchoir_export.checkpoints.files import checkpoint_files, open_checkpoint
from clipchoir_export.checkpoints.stored_tensors import Digests
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import eva_clip
from clipchoir_export.families import open_clip as open_clip_models
from clipchoir_export.families.towers import Architecture, Tower
from clipchoir_export.spec import EncoderSpec, EnsembleSpec, checkpoint_path


@dataclass(frozen=True)
class Encoder:
    """A checkpoint that has been found to fit its architecture; its weights are still where they are stored.

    Attributes:
        architecture: what the repository has to know about it.
        image: the image tower.
        text: the text tower.
        files: the checkpoint's weight files.
    """

    architecture: Architecture
    image: Tower
    text: Tower
    files: tuple[Path, ...]
    _kind: Mapping[str, Any]
    _digests: Digests

    def fingerprint(self) -> str:
        """Identity of the encoder, in hex: its kind, its config and its weights, whatever files they are in.

        Text embeddings belong to it. How images are sharpened, and in what precision, does not change it. Weights
        that have not been read so far are read now.

        Raises:
            CheckpointError: a file cannot be read.
        """
        content = json.dumps([self._kind, self._digests.fingerprint()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def describe(encoder: EncoderSpec, spec_path: Path) -> Architecture:
    """What an encoder looks like. Nothing is downloaded where the spec names the architecture.

    Raises:
        CheckpointError: the architecture is unknown, or the checkpoint's config cannot be used.
    """
    path = checkpoint_path(encoder.checkpoint, spec_path)
    if encoder.architecture is None and not path.exists():
        path = find_checkpoint(encoder, spec_path)
    if encoder.source == "open_clip":
        return open_clip_models.describe(encoder.architecture, path, encoder.checkpoint)
    return _eva_clip_architecture(_eva_clip_config(encoder, path))


def describe_all(spec: EnsembleSpec, spec_path: Path) -> dict[str, Architecture]:
    """`describe` of every encoder, by name, in the spec's order."""
    return {encoder.name: describe(encoder, spec_path) for encoder in spec.encoders}


def open_encoder(encoder: EncoderSpec, spec_path: Path, offline: bool = False, fused_qkv: bool = True) -> Encoder:
    """Find an encoder's checkpoint, download it if need be, and check its keys and shapes; no weight is read.

    Args:
        encoder: which.
        spec_path: the file that paths are relative to.
        offline: use what has been downloaded before, and nothing else.
        fused_qkv: join the projections for queries, keys and values where a checkpoint keeps them apart.

    Raises:
        CheckpointError: there is no checkpoint, or it does not hold this architecture.
    """
    path = find_checkpoint(encoder, spec_path, offline)
    digests = Digests(open_checkpoint(path))
    kind: dict[str, Any] = {"source": encoder.source}
    try:
        if encoder.source == "open_clip":
            architecture = open_clip_models.describe(encoder.architecture, path, encoder.checkpoint)
            model_config = open_clip_models.model_config(encoder.architecture, path)
            kind |= {"config": model_config, "mean": architecture.mean, "std": architecture.std}
            image, text = open_clip_models.open_towers(model_config, digests.tensors)
        else:
            config = _eva_clip_config(encoder, path)
            architecture = _eva_clip_architecture(config)
            kind |= {"config": asdict(config)}
            image, text = eva_clip.open_towers(digests.tensors, config, fused_qkv)
    except CheckpointError as error:
        raise CheckpointError(f"encoder {encoder.name}: {path}: {error}") from error
    return Encoder(architecture, image, text, tuple(checkpoint_files(path)), kind, digests)


def image_skeleton(encoder: EncoderSpec, spec_path: Path) -> tuple[nn.Module, Architecture]:
    """An image tower on the meta device, as the spec names it; its checkpoint is not needed.

    Raises:
        CheckpointError: the architecture is unknown, or the checkpoint's config cannot be used.
    """
    path = checkpoint_path(encoder.checkpoint, spec_path)
    architecture = describe(encoder, spec_path)
    with torch.device("meta"):
        if encoder.source == "open_clip":
            tower = open_clip_models.build(open_clip_models.model_config(encoder.architecture, path)).visual
        else:
            tower = eva_clip.build_image_tower(_eva_clip_config(encoder, path))
    return tower.eval(), architecture


def find_checkpoint(encoder: EncoderSpec, spec_path: Path, offline: bool = False) -> Path:
    """Local path of an encoder's checkpoint: its file or folder, or what a tag or a hub id names, downloaded.

    Raises:
        CheckpointError: it is neither, or cannot be downloaded.
    """
    path = checkpoint_path(encoder.checkpoint, spec_path)
    if path.exists():
        return path
    if hub.is_hub_id(encoder.checkpoint):
        return hub.fetch_checkpoint(encoder.checkpoint, offline)
    if encoder.source == "open_clip" and encoder.architecture is not None and Path(encoder.checkpoint).suffix == "":
        open_clip_models.describe(encoder.architecture, path, encoder.checkpoint)  # names the tags that there are
        return hub.fetch_open_clip(encoder.architecture, encoder.checkpoint, offline)
    raise CheckpointError(
        f'encoder {encoder.name}: checkpoint "{encoder.checkpoint}" is neither a file or folder ({path}) nor the id of '
        'a model on the hub ("organisation/name")'
        + (" nor a tag, for which the spec must name the architecture" if encoder.source == "open_clip" else "")
    )


def _eva_clip_architecture(config: eva_clip.EvaClipConfig) -> Architecture:
    return Architecture(config.image_size, config.embedding_dim, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def _eva_clip_config(encoder: EncoderSpec, path: Path) -> eva_clip.EvaClipConfig:
    config_file = path / "config.json"
    found = eva_clip.EvaClipConfig.from_json(config_file) if config_file.is_file() else None
    if encoder.architecture is None:
        if found is None:
            raise CheckpointError(f'encoder {encoder.name}: there is no {config_file}; name its "architecture"')
        return found
    if encoder.architecture not in eva_clip.KNOWN_CONFIGS:
        known = ", ".join(eva_clip.KNOWN_CONFIGS)
        raise CheckpointError(
            f'encoder {encoder.name}: unknown architecture "{encoder.architecture}"; known are {known}'
        )
    expected = eva_clip.KNOWN_CONFIGS[encoder.architecture]
    if found is not None and found != expected:
        raise CheckpointError(
            f"encoder {encoder.name}: {config_file} is not of {encoder.architecture}: it says {found}, "
            f"{encoder.architecture} is {expected}"
        )
    return expected
