"""Encoders of every family through the same few functions."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipchoir_export.checkpoints import hub
from clipchoir_export.checkpoints.files import checkpoint_files, open_checkpoint
from clipchoir_export.checkpoints.stored_tensors import Digests
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import find_family
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
    _identity: Mapping[str, Any]
    _digests: Digests

    def fingerprint(self) -> str:
        """Identity of the encoder, in hex: its family, its config and its weights, whatever files they are in.

        Text embeddings belong to it. How images are sharpened, and in what precision, does not change it. Weights
        that have not been read so far are read now.

        Raises:
            CheckpointError: a file cannot be read.
        """
        content = json.dumps([self._identity, self._digests.fingerprint()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def describe(encoder: EncoderSpec, spec_path: Path, offline: bool = False) -> Architecture:
    """What an encoder looks like. Nothing is downloaded where the spec names the architecture, and never a weight.

    Raises:
        CheckpointError: the architecture is unknown, or the checkpoint's config cannot be used.
    """
    path = _config_path(encoder, spec_path, offline)
    with _naming(f"encoder {encoder.name}"):
        return find_family(encoder.source).describe(encoder, path)


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
    family = find_family(encoder.source)
    describe(encoder, spec_path, offline)  # refuses before the weights are downloaded
    path = find_checkpoint(encoder, spec_path, offline)
    with _naming(f"encoder {encoder.name}: {path}"):
        architecture = family.describe(encoder, path)
        digests = Digests(open_checkpoint(path))
        identity = {"source": encoder.source, **family.identity(encoder, path)}
        image, text = family.open_towers(encoder, path, digests.tensors, fused_qkv=fused_qkv)
    return Encoder(architecture, image, text, tuple(checkpoint_files(path)), identity, digests)


def image_skeleton(encoder: EncoderSpec, spec_path: Path) -> tuple[nn.Module, Architecture]:
    """An image tower on the meta device, as the spec names it; its weights are not needed.

    Raises:
        CheckpointError: the architecture is unknown, or the checkpoint's config cannot be used.
    """
    family, path = find_family(encoder.source), _config_path(encoder, spec_path)
    with _naming(f"encoder {encoder.name}"):
        architecture = family.describe(encoder, path)
    with torch.device("meta"):
        tower = family.image_tower(encoder, path)
    return tower.eval(), architecture


def find_checkpoint(encoder: EncoderSpec, spec_path: Path, offline: bool = False) -> Path:
    """Local path of an encoder's checkpoint: its file or folder, or the download of a published name or a hub id.

    Raises:
        CheckpointError: it is neither, or cannot be downloaded.
    """
    path = checkpoint_path(encoder.checkpoint, spec_path)
    if path.exists():
        return path
    if hub.is_hub_id(encoder.checkpoint):
        return hub.fetch_checkpoint(encoder.checkpoint, offline)
    family = find_family(encoder.source)
    if published := family.published_file(encoder):
        return hub.fetch_file(published, offline)
    raise CheckpointError(_neither(encoder, path))


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error


def _config_path(encoder: EncoderSpec, spec_path: Path, offline: bool = False) -> Path:
    """Where the checkpoint's config is, or would be if the spec names the architecture."""
    path = checkpoint_path(encoder.checkpoint, spec_path)
    if path.exists() or encoder.architecture is not None:
        return path
    if hub.is_hub_id(encoder.checkpoint):
        return hub.fetch_configs(encoder.checkpoint, offline)
    raise CheckpointError(_neither(encoder, path))


def _neither(encoder: EncoderSpec, path: Path) -> str:
    others = find_family(encoder.source).published_names
    return (
        f'encoder {encoder.name}: checkpoint "{encoder.checkpoint}" is neither a file or folder ({path}) nor the id of '
        'a model on the hub ("organisation/name")' + (f" nor {others}" if others else "")
    )
