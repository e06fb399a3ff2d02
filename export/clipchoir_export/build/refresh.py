"""Renews the Python steps and configs of a repository; its encoders stay, and no checkpoint is needed."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clipchoir_export.build.assembly import Assembly
from clipchoir_export.build.encoder import ModelVersion
from clipchoir_export.build.publishing import changes, publish
from clipchoir_export.build.staging import Staging
from clipchoir_export.errors import RepositoryError
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import EnsembleSpec
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.layout import (
    CONFIG,
    ENSEMBLING,
    RECIPE,
    TOKENIZER,
    ZERO_SHOT,
    check_format,
    is_repository,
    label_set_file,
    newest,
    read_json,
    read_manifest,
    text_model,
)


def refresh_repository(target: Path) -> list[str]:
    """Bring a repository to what this clipchoir, on this machine, would build from the same encoders.

    A failure or an interruption leaves it as it was.

    Returns:
        What is new: versions as `ensembling/2`, and configs by their paths; empty where it was up to date.

    Raises:
        RepositoryError: it is no repository, is of a newer clipchoir, lacks what is needed, or cannot be written.
    """
    target = target.resolve()
    if not is_repository(target):
        raise RepositoryError(f"{target} is no clipchoir repository: there is no {ZERO_SHOT}/{CONFIG}")
    check_format(target, oldest=0)
    try:
        with Staging.beside(target) as staging:
            tree = staging.new_tree()
            _assembly(target).lay_out(tree)
            new = changes(tree)
            publish(tree, target)
            return new
    except OSError as error:
        raise RepositoryError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from error


def _assembly(target: Path) -> Assembly:
    """What a repository was built from, as it says itself."""
    recipe = read_json(target / ENSEMBLING / RECIPE)
    ensembling = newest(target / ENSEMBLING)
    known = read_manifest(ensembling)
    if ensembling is None or not recipe or not known:
        missing = f"{ENSEMBLING}/{RECIPE}" if ensembling and known else f"version of {ENSEMBLING} with a manifest"
        raise RepositoryError(f"{target} has no {missing}, which says what to renew: build it again")
    if known.get("repository_version") != recipe.get("repository_version"):
        raise RepositoryError(
            f"{target}: {ENSEMBLING}/{ensembling.name} is not of the build that its configs are of; after a roll-back, "
            "build the older ensemble again"
        )
    try:
        spec = EnsembleSpec.model_validate(recipe.get("spec"))
        architectures = TypeAdapter(dict[str, Architecture]).validate_python(recipe.get("architectures"))
    except ValidationError as error:
        raise RepositoryError(f"{target / ENSEMBLING / RECIPE} is not of this clipchoir: build it again") from error
    encoders = {each.name: _present(target, each.name) for each in spec.encoders}
    fingerprints = {name: str(each.manifest["fingerprint"]) for name, each in encoders.items()}
    try:
        label_sets = {
            name: EmbeddedLabelSet.load(label_set_file(ensembling, name), fingerprints) for name in spec.label_sets
        }
    except LabelSetFileError as error:
        raise RepositoryError(str(error)) from error
    with_text = [name for name in encoders if newest(target / text_model(name))]
    return Assembly(spec, architectures, encoders, with_text, label_sets, ensembling / TOKENIZER, target)


def _present(target: Path, encoder: str) -> ModelVersion:
    version = newest(target / encoder)
    manifest: dict[str, Any] = read_manifest(version)
    if version is None or not manifest:
        raise RepositoryError(f"{target} has no {encoder} with a manifest: build it again")
    return ModelVersion(encoder, version.name, None, manifest)
