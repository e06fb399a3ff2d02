"""The Python steps of a repository: which sources each has, and whether a version has them."""

import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path

import clipchoir_steps
from clipchoir_export.configs import render_configs
from clipchoir_export.families.towers import Architecture
from clipchoir_export.resources import resource
from clipchoir_export.spec import EnsembleSpec
from clipchoir_steps import atomic
from clipchoir_steps.layout import ENTRY_POINT


def write_source(
    spec: EnsembleSpec,
    architectures: Mapping[str, Architecture],
    folder: Path,
) -> None:
    """Write the part of a repository that is source: every config, and the Python of its Python steps.

    Raises:
        OSError: a file cannot be written.
    """
    for path, content in render_configs(spec, architectures).items():
        model = path.parts[0]
        version = folder / model / "1"
        for needed in (version, (folder / path).parent):
            needed.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / path, content)
        entry = _entry_point(model)
        copy = version / entry.name
        if not entry.is_file():
            (version / ".gitkeep").touch()  # Triton wants the folder, git keeps no empty one
        elif not (copy.exists() and copy.samefile(entry)):
            shutil.copyfile(entry, copy)


def copy_step(step: str, folder: Path) -> None:
    """Put a step's Python into a version folder."""
    for name, source in _sources(step).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)


def holds_step(step: str, version: Path) -> bool:
    """Whether a version folder has a step's Python, and no other."""
    sources = _sources(step)
    if {str(path.relative_to(version)) for path in version.rglob("*.py")} != sources.keys():
        return False
    return all(filecmp.cmp(path, version / name, shallow=False) for name, path in sources.items())


def _sources(step: str) -> dict[str, Path]:
    """By path in the version folder: `model.py`, and beside it all of `clipchoir_steps`."""
    package = Path(clipchoir_steps.__file__).parent
    modules = {str(path.relative_to(package.parent)): path for path in sorted(package.rglob("*.py"))}
    return {ENTRY_POINT: _entry_point(step), **modules}


def _entry_point(step: str) -> Path:
    return resource("model_repository") / step / "1" / ENTRY_POINT
