"""New versions of a repository's models: into an empty place at once, into a live repository model by model.

A version that is served is never touched: what changed gets a version folder of its own, which Triton takes up, and
gives up again when the folder goes or the model's `version_policy` names another.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from clipchoir_steps import atomic
from clipchoir_steps.layout import ENSEMBLING, ZERO_SHOT, versions

_LAST = (ENSEMBLING, ZERO_SHOT)  # their new versions must not appear before all others'


def changes(tree: Path) -> list[str]:
    """What a tree brings: new versions as `ensembling/2`, and files of models by their paths."""
    models = sorted(tree.iterdir())
    new = [f"{model.name}/{number}" for model in models for number in versions(model)]
    return [*new, *(str(path.relative_to(tree)) for model in models for path in _model_files(model))]


def publish(tree: Path, target: Path) -> None:
    """Put a tree of new version folders and configs in place.

    Args:
        tree: on the same file system as the target.
        target: a repository, or nothing yet.

    Raises:
        OSError: something cannot be moved; what was moved before is back in its place.
    """
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        tree.rename(target)
        return
    undo: list[Callable[[], object]] = []
    models = sorted((path for path in tree.iterdir()), key=lambda path: (path.name in _LAST, path.name))
    try:
        for model in models:
            _publish_model(model, target / model.name, undo)
    except BaseException:
        for step in reversed(undo):
            with contextlib.suppress(OSError):
                step()
        raise


def _publish_model(model: Path, place: Path, undo: list[Callable[[], object]]) -> None:
    if not place.exists():
        model.rename(place)
        undo.append(lambda: place.rename(model))
        return
    # The configs first: they may have to know the new version when that is loaded, and old versions are still in them.
    for file in _model_files(model):
        _replace(file, place / file.relative_to(model), undo)
    for number in versions(model):
        new, old = place / str(number), model / str(number)
        old.rename(new)
        undo.append(lambda new=new, old=old: new.rename(old))  # type: ignore[misc]


def _model_files(model: Path) -> list[Path]:
    """Its configs and what else is not of one version."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return [path for path in files if not path.relative_to(model).parts[0].isdecimal()]


def _replace(new: Path, file: Path, undo: list[Callable[[], object]]) -> None:
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        new.rename(file)
        undo.append(lambda: file.unlink())
    else:
        before = file.read_bytes()
        os.replace(new, file)  # noqa: PTH105
        undo.append(lambda: atomic.write_bytes(file, before))
