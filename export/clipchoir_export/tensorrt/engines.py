"""What building a repository's TensorRT engines needs: for each encoder a script, answers to check it by, a config."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tritonclient.grpc import model_config_pb2

from clipchoir_export.build.encoder import EVIDENCE, IMAGE_ENCODER, TEXT_ENCODER
from clipchoir_export.build.verification import MIN_COSINE
from clipchoir_export.configs import load_template
from clipchoir_export.errors import RepositoryError
from clipchoir_export.inspection import inspect
from clipchoir_export.spec import Precision
from clipchoir_export.tensorrt import engine_check
from clipchoir_steps import atomic
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.layout import (
    CONFIG,
    ENSEMBLING,
    MANIFEST,
    TOKENIZER,
    label_set_file,
    newest,
    read_config,
    read_manifest,
    text_model,
)

FOLDER = "tensorrt"  # Triton takes folders whose names are numbers, and no others
VARIANT = Path("configs") / "tensorrt.pbtxt"  # where Triton looks for --model-config-name=tensorrt
SERVE = "tritonserver --model-repository=/models --model-config-name=tensorrt"
SCRIPT, CHECK, EXPECTED = "build.sh", "check.py", "expected.json"
_OPT_BATCH = 32
_PROMPTS = 8
_ATTENTION_SINCE = 23  # opset
_ADVICE: Mapping[Precision, str] = {  # where an engine does not agree
    "fp16": "; precision bf16 or fp32 in the ensemble's spec may help",
    "bf16": "; precision fp32 in the ensemble's spec may help",
    "fp32": "",
}
_FOR_CPUS: Precision = "int8"
_NOT_OF_A_PLAN = ("name", "backend", "platform", "default_model_filename", "optimization", "parameters")


@dataclass(frozen=True)
class Answers:
    """Inputs of an encoder, and what its checkpoint makes of them.

    Attributes:
        rows: uint8 (N, S, S, 3) pixels or int64 (N, 77) tokens.
        embeddings: float32 (N, D), rows of length 1.
        bar: cosine that an engine's embeddings must reach.
    """

    rows: NDArray[Any]
    embeddings: NDArray[np.float32]
    bar: float


def write_engine_builds(repository: Path, opt_batch: int | None = None) -> list[str]:
    """Write what building engines needs, for the newest version of every encoder; no weight is read.

    Each gets `configs/tensorrt.pbtxt` beside its config, and a folder `tensorrt` with `build.sh` and what that needs.

    Args:
        repository: as `clipchoir-export build` wrote it; text encoders count where they are models of it.
        opt_batch: batch size to tune the engines for; None: 32, or the largest allowed.

    Returns:
        The models.

    Raises:
        RepositoryError: the folder is no whole clipchoir repository or cannot be written, an encoder was built without
            verification or in int8, or `opt_batch` is too large.
    """
    found = inspect(repository)
    if found.problems:
        raise RepositoryError("\n".join([*found.problems, f"{repository} is not whole; build it again"]))
    encoders = {
        each.model: each.manifest
        for each in found.models
        if each.served and each.manifest.get("kind") in (IMAGE_ENCODER, TEXT_ENCODER)
    }
    files = {model: _files(repository, model, manifest, opt_batch) for model, manifest in encoders.items()}
    for model, contents in files.items():
        for name, content in contents.items():
            _write(repository / model / name, content)
    return list(files)


def build_command(repository: Path) -> str:
    """The line that runs every script of a repository inside NVIDIA's image, until one fails."""
    mount = shlex.quote(f"{repository.resolve()}:/models")
    each = f'set -e; for build in /models/*/{FOLDER}/{SCRIPT}; do bash "$build"; done'
    return f"docker run --rm --gpus all -v {mount} ${{TRITON_IMAGE}} bash -c {shlex.quote(each)}"


def _files(repository: Path, model: str, manifest: Mapping[str, Any], opt_batch: int | None) -> Mapping[Path, bytes]:
    """By path in the model's folder."""
    if manifest["precision"] == _FOR_CPUS:
        raise RepositoryError(
            f"{model} is {_FOR_CPUS}, whose products are made for CPUs; TensorRT needs it built with fp16, bf16 or fp32"
        )
    version = newest(repository / model)
    assert version is not None  # noqa: S101  it has a manifest
    config = read_config(repository / model / CONFIG)
    if manifest["kind"] == IMAGE_ENCODER:
        answers = _pictures(version, manifest)
    else:
        answers = _prompts(repository, model, manifest)
    rows = answers.rows[: config.max_batch_size]
    expected = {
        "model": model,
        "output": config.output[0].name,
        "bar": answers.bar,
        "embeddings": answers.embeddings[: len(rows)].astype(float).tolist(),
    }
    return {
        VARIANT: _variant(config),
        Path(FOLDER) / f"{config.input[0].name}.bin": rows.tobytes(),
        Path(FOLDER) / EXPECTED: json.dumps(expected).encode(),
        Path(FOLDER) / MANIFEST: (version / MANIFEST).read_bytes(),
        Path(FOLDER) / CHECK: Path(engine_check.__file__).read_bytes(),
        Path(FOLDER) / SCRIPT: _script(config, version.name, manifest, len(rows), opt_batch),
    }


def _variant(config: Any) -> bytes:
    """The config of the model as an engine: what is not about ONNX Runtime stays as it is."""
    shared = model_config_pb2.ModelConfig()
    shared.CopyFrom(config)
    for field in _NOT_OF_A_PLAN:
        shared.ClearField(field)
    text = text_format.MessageToString(shared, use_short_repeated_primitives=True)
    return load_template("tensorrt.pbtxt.j2").render(name=config.name, shared=text.rstrip()).encode()


def _script(config: Any, version: str, manifest: Mapping[str, Any], rows: int, opt_batch: int | None) -> bytes:
    largest = config.max_batch_size
    if opt_batch is not None and opt_batch > largest:
        raise RepositoryError(
            f"{config.name} takes batches of {largest} at most; an engine cannot be tuned for {opt_batch}"
        )
    tensor = config.input[0]
    script = load_template("build_engine.sh.j2").render(
        model=config.name,
        version=version,
        input=tensor.name,
        shape=partial(_shape, tensor.dims),
        rows=rows,
        opt_batch=opt_batch or min(_OPT_BATCH, largest),
        max_batch=largest,
        fused_attention=manifest["opset"] >= _ATTENTION_SINCE,
        advice=_ADVICE[manifest["precision"]],
    )
    return script.encode()


def _pictures(folder: Path, manifest: Mapping[str, Any]) -> Answers:
    """Test images of the build's verification, as the checkpoint embedded them."""
    if not manifest["verification"]:
        raise RepositoryError(
            f"{folder} was built with --verify off, so there is nothing to check an engine by; build it again without"
        )
    try:
        tensors = load_file(folder / EVIDENCE)
        return Answers(tensors["pixels"], tensors["embedding"], manifest["verification"]["bar"])
    except (OSError, SafetensorError, KeyError) as error:
        raise RepositoryError(f"{folder / EVIDENCE} cannot be used ({error}); build the repository again") from error


def _prompts(repository: Path, model: str, manifest: Mapping[str, Any]) -> Answers:
    """Prompts of the default label set, as the checkpoint embedded them; evenly spaced, so of many classes."""
    ensembling = newest(repository / ENSEMBLING)
    assert ensembling is not None  # noqa: S101  the repository is whole
    known = read_manifest(ensembling)
    encoders = {text_model(name): name for name in known["encoders"]}
    if model not in encoders:
        raise RepositoryError(f"{ENSEMBLING} does not know the encoder that {model} belongs to; build it again")
    encoder = encoders[model]
    label_set = label_set_file(ensembling, known["label_sets"][0])
    stored = EmbeddedLabelSet.load(label_set, {encoder: manifest["fingerprint"]})
    tokens = PromptTokenizer(ensembling / TOKENIZER)(list(stored.prompts))  # (P, 77)
    distinct = np.sort(np.unique(tokens, axis=0, return_index=True)[1])
    chosen = distinct[np.linspace(0, len(distinct) - 1, min(_PROMPTS, len(distinct)), dtype=int)]
    return Answers(tokens[chosen], stored.embeddings[encoder][chosen], MIN_COSINE[manifest["precision"]])


def _shape(dims: Any, batch: int) -> str:
    return "x".join(str(size) for size in (batch, *dims))


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        atomic.write_bytes(path, content)
        path.chmod(0o755 if path.name == SCRIPT else 0o644)
    except OSError as error:
        raise RepositoryError(
            f"{path} cannot be written: {error.strerror}; make {path.parent.parent} writable, or copy the repository"
        ) from error
