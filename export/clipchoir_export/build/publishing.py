"""New versions of a repository's models: into an empty place at once, into a live repository model by model.

A version that is served is never touched: what changed gets a version folder of its own, which Triton takes up, and
gives up again when the folder goes or the model's `version_policy` names another.
"""

import contextlib
import filecmp
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from clipchoir_steps.layout import versions


def holds_sources(version: Path, sources: Mapping[str, Path]) -> bool:
    """Whether a version has exactly these Python files, by their paths in it."""
    if {str(path.relative_to(version)) for path in version.rglob("*.py")} != sources.keys():
        return False
    return all(filecmp.cmp(path, version / name, shallow=False) for name, path in sources.items())


def publish(tree: Path, target: Path, last: tuple[str, ...]) -> None:
    """Put a tree of new version folders and configs in place.

    Args:
        tree: on the same file system as the target.
        target: a repository, or nothing yet.
        last: models whose new versions must not appear before all others'.

    Raises:
        OSError: something cannot be moved; what was moved before is back in its place.
    """
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        tree.rename(target)
        return
    undo: list[Callable[[], object]] = []
    models = sorted((path for path in tree.iterdir()), key=lambda path: (path.name in last, path.name))
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
    for new_config in sorted(model.rglob("*.pbtxt")):
        _replace(new_config, place / new_config.relative_to(model), undo)
    for number in versions(model):
        new, old = place / str(number), model / str(number)
        old.rename(new)
        undo.append(lambda new=new, old=old: new.rename(old))  # type: ignore[misc]


def _replace(new: Path, file: Path, undo: list[Callable[[], object]]) -> None:
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        new.rename(file)
        undo.append(lambda: file.unlink())
    elif not filecmp.cmp(new, file, shallow=False):
        before = file.read_bytes()
        os.replace(new, file)  # noqa: PTH105
        undo.append(lambda: file.write_bytes(before))
