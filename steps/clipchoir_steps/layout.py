"""The layout of a model repository: its models, its files, its versions, and what its configs and manifests say."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clipchoir_steps import atomic

FORMAT = 2
"""Of repositories: what this code writes and reads. `zero_shot`'s config says which one a repository has."""
ZERO_SHOT, PREPROCESS, ENSEMBLING, LABEL_SETS = "zero_shot", "preprocess", "ensembling", "label_sets"
STEPS = (PREPROCESS, ENSEMBLING, LABEL_SETS)
"""Models that are Python."""
CONFIG = "config.pbtxt"
MANIFEST = "manifest.json"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
ENTRY_POINT = "model.py"
RECIPE = "build.json"
"""In `ensembling`, beside its config: the spec and the architectures that every config was rendered from."""
_LABEL_SET = ".safetensors"


class RepositoryError(Exception):
    """A repository is damaged, is none, or cannot be written; the message is fit to be printed as it is."""


def text_model(encoder: str) -> str:
    """Name of the model of an encoder's text tower."""
    return f"{encoder}_text"


def is_repository(folder: Path) -> bool:
    """Whether a folder is a repository that clipchoir built."""
    return (folder / ZERO_SHOT / CONFIG).is_file()


def versions(model: Path) -> list[int]:
    """Version numbers of a model's folder, oldest first."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if path.is_dir() and path.name.isdecimal())


def newest(model: Path) -> Path | None:
    """Folder of the version that Triton serves by default."""
    numbers = versions(model)
    return model / str(numbers[-1]) if numbers else None


def next_version(model: Path) -> str:
    """Name of the folder for a new version."""
    return str(max(versions(model), default=0) + 1)


def read_manifest(version: Path | None) -> dict[str, Any]:
    """What a version's `manifest.json` says; empty if there is none.

    Raises:
        RepositoryError: it is damaged.
    """
    return {} if version is None else read_json(version / MANIFEST)


def read_json(file: Path) -> dict[str, Any]:
    """What a file of the repository says; empty if there is none.

    Raises:
        RepositoryError: it is damaged.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RepositoryError(f"{file}: is not a table; remove {file.parent} and build again")
    return content


def to_json(content: Mapping[str, Any]) -> str:
    """As the repository's files have it."""
    return json.dumps(content, indent=2) + "\n"


def write_manifest(version: Path, content: Mapping[str, Any]) -> None:
    """Write a version's `manifest.json`."""
    atomic.write_text(version / MANIFEST, to_json(content))


def label_sets_folder(ensembling: Path) -> Path:
    """Where a version of `ensembling` keeps its label sets."""
    return ensembling / "label_sets"


def label_set_file(ensembling: Path, name: str) -> Path:
    """Where a version of `ensembling` keeps one label set."""
    return label_sets_folder(ensembling) / f"{name}{_LABEL_SET}"


def label_set_files(folder: Path) -> dict[str, Path]:
    """The label sets of such a folder, by name; what is hidden is being written."""
    return {path.stem: path for path in sorted(folder.glob(f"[!.]*{_LABEL_SET}"))}


def added_label_sets(ensembling: Path, from_spec: Collection[str]) -> dict[str, Path]:
    """The label sets that a version of `ensembling` has beside those of its spec, by name."""
    files = label_set_files(label_sets_folder(ensembling))
    return {name: path for name, path in files.items() if name not in from_spec}


def read_config(path: Path) -> Any:
    """A model's config, as Triton's own `ModelConfig` message.

    Raises:
        RepositoryError: there is none, or it is not one.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is no Triton config: {error}") from error


def config_parameters(config: Any) -> dict[str, str]:
    """The parameters of a model's config."""
    return {name: value.string_value for name, value in config.parameters.items()}


def check_format(repository: Path, oldest: int = FORMAT) -> None:
    """Check that this code understands a repository.

    Args:
        repository: the folder.
        oldest: format that will do.

    Raises:
        RepositoryError: it is of another format; the message says what to do.
    """
    value = config_parameters(read_config(repository / ZERO_SHOT / CONFIG)).get("repository_format", "1")
    found = int(value) if value.isdecimal() else 0
    if found > FORMAT:
        raise RepositoryError(
            f"{repository} was built by a newer clipchoir: upgrade this one (it knows format {FORMAT}, not {found})"
        )
    if found < oldest:
        can_be_renewed = (repository / ENSEMBLING / RECIPE).is_file()
        advice = f"renew it with: clipchoir-export refresh {repository}" if can_be_renewed else "build it again"
        raise RepositoryError(f"{repository} was built by an older clipchoir; {advice}")
