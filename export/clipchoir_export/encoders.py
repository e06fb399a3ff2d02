"""Encoders of every source behind one face."""

import hashlib
from pathlib import Path

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from clipchoir_export import eva_clip, open_clip_models
from clipchoir_export.checkpoint_files import checkpoint_files
from clipchoir_export.errors import CheckpointError
from clipchoir_export.spec import EncoderSpec, EnsembleSpec, checkpoint_path
from clipchoir_export.towers import Architecture, Towers

_CHUNK = 1 << 24  # bytes


def describe(encoder: EncoderSpec, spec_path: Path) -> Architecture:
    """What an encoder looks like, without reading its weights.

    Raises:
        CheckpointError: the architecture is unknown, or the checkpoint's config cannot be used.
    """
    path = checkpoint_path(encoder.checkpoint, spec_path)
    if encoder.source == "open_clip":
        return open_clip_models.describe(encoder.architecture, path, encoder.checkpoint)
    config = _eva_clip_config(encoder, path)
    return Architecture(config.image_size, config.embedding_dim, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def describe_all(spec: EnsembleSpec, spec_path: Path) -> dict[str, Architecture]:
    """`describe` of every encoder, by name, in the spec's order."""
    return {encoder.name: describe(encoder, spec_path) for encoder in spec.encoders}


def load(encoder: EncoderSpec, spec_path: Path) -> Towers:
    """Load an encoder's towers.

    Raises:
        CheckpointError: there is no checkpoint, or it does not hold this architecture.
    """
    path = _checkpoint(encoder, spec_path)
    if encoder.source == "open_clip":
        return open_clip_models.load(encoder.architecture, path)
    image, text = eva_clip.load_eva_clip(path, _eva_clip_config(encoder, path))
    return Towers(image, text)


def fingerprint(encoder: EncoderSpec, spec_path: Path) -> str:
    """Identity of an encoder's checkpoint: sha256 over its weights and configs, in hex.

    Text embeddings belong to it. How images are sharpened, and in what precision, does not change it.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    path = _checkpoint(encoder, spec_path)
    configs = sorted(path.glob("*config.json")) if path.is_dir() else []
    digest = hashlib.sha256(f"{encoder.source} {encoder.architecture}".encode())
    try:
        for file_path in [*checkpoint_files(path), *configs]:
            with file_path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _checkpoint(encoder: EncoderSpec, spec_path: Path) -> Path:
    path = checkpoint_path(encoder.checkpoint, spec_path)
    if not path.exists():
        raise CheckpointError(
            f'encoder {encoder.name}: checkpoint "{encoder.checkpoint}" is not a file or folder ({path}); nothing is '
            "downloaded so far: fetch it, and name where it lies"
        )
    return path


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
