"""Encoders of every source behind one face."""

import hashlib
from pathlib import Path

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from clipchoir_export import eva_clip, open_clip_models
from clipchoir_export.errors import CheckpointError
from clipchoir_export.spec import EncoderSpec, EnsembleSpec, checkpoint_path
from clipchoir_export.towers import Architecture, Towers

_CHUNK = 1 << 24  # bytes


def describe(encoder: EncoderSpec, spec_path: Path) -> Architecture:
    """What an encoder looks like, without reading its weights.

    Raises:
        CheckpointError: the architecture is unknown, or the checkpoint's config cannot be used.
    """
    folder = checkpoint_path(encoder.checkpoint, spec_path)
    if encoder.source == "open_clip":
        return open_clip_models.describe(encoder.architecture, folder, encoder.checkpoint)
    config = _eva_clip_config(encoder, folder)
    return Architecture(config.image_size, config.embedding_dim, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def describe_all(spec: EnsembleSpec, spec_path: Path) -> dict[str, Architecture]:
    """`describe` of every encoder, by name, in the spec's order."""
    return {encoder.name: describe(encoder, spec_path) for encoder in spec.encoders}


def load(encoder: EncoderSpec, spec_path: Path) -> Towers:
    """Load an encoder's towers.

    Raises:
        CheckpointError: there is no checkpoint folder, or it does not hold this architecture.
    """
    folder = _checkpoint_folder(encoder, spec_path)
    if encoder.source == "open_clip":
        return open_clip_models.load(folder)
    image, text = eva_clip.load_eva_clip(folder, _eva_clip_config(encoder, folder))
    return Towers(image, text)


def fingerprint(encoder: EncoderSpec, spec_path: Path) -> str:
    """Identity of an encoder's checkpoint: sha256 over its weights and configs, in hex.

    Text embeddings belong to it. How images are sharpened, and in what precision, does not change it.

    Raises:
        CheckpointError: a file cannot be read.
    """
    folder = _checkpoint_folder(encoder, spec_path)
    digest = hashlib.sha256(f"{encoder.source} {encoder.architecture}".encode())
    try:
        for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _checkpoint_folder(encoder: EncoderSpec, spec_path: Path) -> Path:
    folder = checkpoint_path(encoder.checkpoint, spec_path)
    if not folder.is_dir():
        raise CheckpointError(
            f'encoder {encoder.name}: checkpoint "{encoder.checkpoint}" is not a folder ({folder}); only checkpoint '
            "folders can be built so far"
        )
    return folder


def _eva_clip_config(encoder: EncoderSpec, folder: Path) -> eva_clip.EvaClipConfig:
    if encoder.architecture is None:
        return eva_clip.EvaClipConfig.from_json(folder / "config.json")
    try:
        return eva_clip.KNOWN_CONFIGS[encoder.architecture]
    except KeyError:
        known = ", ".join(eva_clip.KNOWN_CONFIGS)
        raise CheckpointError(
            f'encoder {encoder.name}: unknown architecture "{encoder.architecture}"; known are {known}'
        ) from None
