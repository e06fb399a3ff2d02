"""What is in a repository, and whether it is complete and belongs together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from clipchoir_export.build.encoder import IMAGE_ENCODER, TEXT_ENCODER
from clipchoir_export.errors import RepositoryError
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.layout import (
    CONFIG,
    ENSEMBLING,
    ENTRY_POINT,
    MODEL,
    STEPS,
    ZERO_SHOT,
    added_label_sets,
    check_format,
    config_parameters,
    is_repository,
    label_set_file,
    newest,
    read_config,
    read_manifest,
    text_model,
    versions,
)

HEADINGS = ("model", "version", "size", "precision", "parameters", "fingerprint", "agreement")


@dataclass(frozen=True)
class ModelReport:
    """One version of one model.

    Attributes:
        model: its name.
        version: its number.
        served: whether it is the newest, which Triton serves by default.
        bytes: of all its files; a linked file counts, though it takes no room of its own.
        manifest: as it was built; empty for models without one.
    """

    model: str
    version: int
    served: bool
    bytes: int
    manifest: Mapping[str, Any]

    def row(self) -> tuple[str, ...]:
        """The cells under `HEADINGS`."""
        verification = self.manifest.get("verification")
        agreement = "not verified" if self.manifest.get("kind") == IMAGE_ENCODER else ""
        if verification:
            agreement = f"cosine {verification['min_cosine']:.6f} on {verification['images']} images"
        precision = self.manifest.get("precision", "")
        return (
            self.model,
            f"{self.version}{'' if self.served else ' (old)'}",
            f"{self.bytes / 1e6:,.1f} MB",
            f"{precision} {self.manifest['dialect']}" if precision else "",
            f"{self.manifest['parameters'] / 1e6:,.1f} M" if precision else "",
            self.manifest.get("fingerprint", "")[:12],
            agreement,
        )


@dataclass(frozen=True)
class Inspection:
    """A whole repository.

    Attributes:
        models: every version of every model.
        label_sets: by name: its classes, of the newest `ensembling`.
        problems: what is missing, damaged or does not belong together; empty if all is well.
    """

    models: list[ModelReport] = field(default_factory=list)
    label_sets: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def inspect(repository: Path) -> Inspection:
    """Look through a repository; no weight is read.

    Raises:
        RepositoryError: the folder is no clipchoir repository, or one of another format.
    """
    if not is_repository(repository):
        raise RepositoryError(f"{repository} is no clipchoir repository: there is no {ZERO_SHOT}/{CONFIG}")
    check_format(repository)
    found = Inspection()
    for model in sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith(".")):
        numbers = versions(model)
        if not numbers:
            found.problems.append(f"{model.name}: has no version folder")
        if not (model / CONFIG).is_file():
            found.problems.append(f"{model.name}: has no {CONFIG}")
        for number in numbers:
            found.models.append(_model_report(model, number, number == numbers[-1], found.problems))
    found.problems.extend(_ensemble_problems(repository, found))
    return found


def _model_report(model: Path, number: int, served: bool, problems: list[str]) -> ModelReport:
    version = model / str(number)
    size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    manifest: Mapping[str, Any] = {}
    try:
        manifest = read_manifest(version)
    except RepositoryError as error:
        problems.append(str(error))
    if manifest.get("kind") in (IMAGE_ENCODER, TEXT_ENCODER) or (version / MODEL).exists():
        problems.extend(f"{model.name}/{number}: {problem}" for problem in _onnx_problems(version))
    return ModelReport(model.name, number, served, size, manifest)


def _onnx_problems(version: Path) -> Iterator[str]:
    """Whether every byte that the graph points at is there."""
    if not (version / MODEL).is_file():
        yield f"{MODEL} is missing"
        return
    try:
        graph = ir.load(version / MODEL).graph
    except Exception as error:  # whatever the protobuf parser raises
        yield f"{MODEL} cannot be read: {error}"
        return
    ends: dict[str, int] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            end = (tensor.offset or 0) + (tensor.length or 0)
            name = str(tensor.location)
            ends[name] = max(ends.get(name, 0), end)
    for name, end in ends.items():
        path = version / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size < end:
            yield f"{name} is truncated: it has {path.stat().st_size:,} bytes, {MODEL} needs {end:,}"


def _ensemble_problems(repository: Path, found: Inspection) -> Iterator[str]:
    steps = {name: newest(repository / name) for name in STEPS}
    for name, version in steps.items():
        if version is None or not (version / ENTRY_POINT).is_file():
            yield f"{name}: has no {ENTRY_POINT}"
    served = {each.model: each.manifest for each in found.models if each.served}
    ensembling = served.get(ENSEMBLING, {})
    version = steps[ENSEMBLING]
    if version is None or not ensembling.get("encoders"):
        yield f"{ENSEMBLING}: does not say which encoders it belongs to; build the repository again"
        return
    named = config_parameters(read_config(repository / ZERO_SHOT / CONFIG)).get("repository_version")
    if named and named != ensembling.get("repository_version"):
        yield (
            f"{ZERO_SHOT}: its config is of version {named} of the repository, and {ENSEMBLING} of "
            f"{ensembling.get('repository_version')}; after a roll-back, build the older ensemble again: it writes the "
            "configs alone"
        )
    fingerprints = {name: each["fingerprint"] for name, each in ensembling["encoders"].items()}
    for name, fingerprint in fingerprints.items():
        for model in (name, text_model(name)):
            actual = served.get(model, {}).get("fingerprint")
            if actual != fingerprint and (model == name or model in served):
                yield (
                    f"{model}: serves {str(actual)[:12]}, {ENSEMBLING} belongs to {fingerprint[:12]}; "
                    "serve versions of one build, or build again"
                )
    for name in [*ensembling["label_sets"], *added_label_sets(version, ensembling["label_sets"])]:
        try:
            stored = EmbeddedLabelSet.load(label_set_file(version, name), fingerprints)
            found.label_sets[name] = list(stored.classes)
        except LabelSetFileError as error:
            yield str(error)
