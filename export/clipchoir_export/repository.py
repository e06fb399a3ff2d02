"""Spec -> a complete Triton model repository."""

import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID
from torch import nn

from clipchoir_export import encoders
from clipchoir_export.configs import Identity, render_configs
from clipchoir_export.ensembling_step import EmbeddedLabelSet, LabelSet, PromptTokenizer
from clipchoir_export.errors import RepositoryError, SpecError
from clipchoir_export.onnx_files import OPSET, Verification, verify_image_encoder, write_image_encoder
from clipchoir_export.resources import resource
from clipchoir_export.spec import EncoderSpec, EnsembleSpec, load_label_set
from clipchoir_export.text import embed_prompts, write_tokenizer
from clipchoir_export.towers import Architecture

VERSION = "1"  # folder of a model's first version
_TOOLS = ("torch", "timm", "open_clip", "onnx", "onnxscript", "onnxruntime")


def build_repository(spec: EnsembleSpec, spec_path: Path, target: Path, progress: Progress) -> None:
    """Build everything beside `target`, then put it in place: a failed build changes nothing.

    Raises:
        ExportError: of the kind that fits; see `clipchoir_export.errors`.
    """
    target = target.resolve()
    _check_target(target)
    label_sets = [load_label_set(name, spec_path) for name in spec.label_sets]
    architectures = encoders.describe_all(spec, spec_path)
    _check_precisions(spec, spec_path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            folder = Path(scratch) / target.name
            identity = _identity(spec, spec_path, label_sets)
            write_source(spec, architectures, folder, identity)
            _write_weights(spec, spec_path, architectures, identity.fingerprints, label_sets, folder, progress)
            _put_in_place(folder, target, Path(scratch) / "replaced")
    except OSError as error:
        raise RepositoryError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from error


def write_source(
    spec: EnsembleSpec,
    architectures: Mapping[str, Architecture],
    folder: Path,
    identity: Identity | None = None,
) -> None:
    """Write the part of a repository that is source: every config, and the Python of its Python steps.

    Raises:
        OSError: a file cannot be written.
    """
    for path, content in render_configs(spec, architectures, identity).items():
        version = folder / path.parent / VERSION
        version.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
        sources = list((resource("model_repository") / path.parent / VERSION).glob("*.py"))
        for source in sources:
            copy = version / source.name
            if not (copy.exists() and copy.samefile(source)):
                shutil.copyfile(source, copy)
        if not sources:  # Triton wants the folder, git keeps no empty one
            (version / ".gitkeep").touch()


def _write_weights(
    spec: EnsembleSpec,
    spec_path: Path,
    architectures: Mapping[str, Architecture],
    fingerprints: Mapping[str, str],
    label_sets: list[LabelSet],
    folder: Path,
    progress: Progress,
) -> None:
    ensembling = folder / "ensembling" / VERSION
    write_tokenizer(ensembling / "tokenizer.json")
    tokenizer = PromptTokenizer(ensembling / "tokenizer.json")
    embeddings: dict[str, dict[str, NDArray[np.float32]]] = {label_set.name: {} for label_set in label_sets}
    for encoder in spec.encoders:
        name = encoder.name
        steps = progress.add_task(f"{name}: load, export, verify", total=3)
        towers = encoders.load(encoder, spec_path)
        progress.advance(steps)
        version = folder / name / VERSION
        _write_encoder(encoder, towers.image, architectures[name], fingerprints[name], version, step=steps, on=progress)
        task = progress.add_task(f"{name}: embed prompts", total=sum(len(each.prompts()) for each in label_sets))
        for label_set in label_sets:
            advance = partial(progress.advance, task)
            embeddings[label_set.name][name] = embed_prompts(label_set, towers.text, tokenizer, advance)
    (ensembling / "label_sets").mkdir()
    for label_set in label_sets:
        EmbeddedLabelSet(
            classes=label_set.classes,
            prompts=tuple(label_set.prompts()),
            prompt_counts=np.array(label_set.prompt_counts()),
            embeddings=embeddings[label_set.name],
            fingerprints=fingerprints,
        ).save(ensembling / "label_sets" / f"{label_set.name}.safetensors")


def _write_encoder(
    encoder: EncoderSpec,
    tower: nn.Module,
    architecture: Architecture,
    fingerprint: str,
    version: Path,
    step: TaskID,
    on: Progress,
) -> None:
    """Write `model.onnx`, prove it, and write what it is beside it."""
    model = version / "model.onnx"
    write_image_encoder(tower, architecture, encoder.sharpness, model)
    on.advance(step)
    verification = verify_image_encoder(model, tower, architecture, encoder.sharpness)
    manifest = _manifest(encoder, architecture, fingerprint, verification)
    (version / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    on.advance(step)


def _identity(spec: EnsembleSpec, spec_path: Path, label_sets: list[LabelSet]) -> Identity:
    fingerprints = {encoder.name: encoders.fingerprint(encoder, spec_path) for encoder in spec.encoders}
    label_content = [[label_set.classes, label_set.prompts()] for label_set in label_sets]
    content = [spec.model_dump(mode="json"), fingerprints, label_content]
    return Identity(fingerprints, version=hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12])


def _manifest(
    encoder: EncoderSpec, architecture: Architecture, fingerprint: str, verification: Verification
) -> dict[str, Any]:
    return {
        "name": encoder.name,
        "source": encoder.source,
        "checkpoint": encoder.checkpoint,
        "fingerprint": fingerprint,
        "precision": encoder.precision,
        "opset": OPSET,
        "preprocessing": {
            "image_size": architecture.image_size,
            "resize": "squash, PIL bicubic",
            "sharpness": encoder.sharpness,
            "mean": architecture.mean,
            "std": architecture.std,
        },
        "embedding_dim": architecture.embedding_dim,
        "verification": asdict(verification),
        "tools": {tool: importlib.import_module(tool).__version__ for tool in _TOOLS},
    }


def _check_precisions(spec: EnsembleSpec, spec_path: Path) -> None:
    for index, encoder in enumerate(spec.encoders):
        if encoder.precision != "fp32":
            raise SpecError(
                f"{spec_path}: encoders.{index}.precision: {encoder.precision} cannot be built so far; use fp32"
            )


def _check_target(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise RepositoryError(f"{target} is a file; --repository must name a folder")
    if any(target.iterdir()) and not (target / "zero_shot" / "config.pbtxt").is_file():
        raise RepositoryError(
            f"{target} holds something else than a clipchoir repository; choose another --repository or empty it"
        )


def _put_in_place(folder: Path, target: Path, replaced: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    target.rename(replaced)
    try:
        folder.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
