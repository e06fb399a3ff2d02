"""Steps of a build that took long and are done, kept beside the target until the whole is published."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipchoir_export.locking import exclusively
from clipchoir_steps import atomic

_DONE = ".done"
_LOCK = ".lock"
_TREE = "publish"


class Staging:
    """A hidden folder of finished steps. A build that was interrupted finds them again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextlib.contextmanager
    def beside(cls, target: Path) -> Iterator["Staging"]:
        """The staging folder of a target, for one build at a time.

        Finished steps stay, for the next build to take up; unfinished ones go, and so does the folder once it is empty.

        Raises:
            RepositoryError: another build of the same target is running.
        """
        folder = target.parent / f".{target.name}.building"
        folder.mkdir(parents=True, exist_ok=True)
        staging = cls(folder)
        with exclusively(folder / _LOCK, f"build of {target}"):
            try:
                yield staging
            finally:
                staging._remove_unfinished()

    def step(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a step: as it was left by an earlier build with the same key, or made now."""
        folder = self.folder / name
        content = json.dumps(key, sort_keys=True)
        if (folder / _DONE).is_file() and (folder / _DONE).read_text(encoding="utf-8") == content:
            return folder
        self.discard(name)
        folder.mkdir()
        make(folder)
        atomic.write_text(folder / _DONE, content)
        return folder

    def new_tree(self) -> Path:
        """An empty folder, to lay out what shall be published."""
        self.discard(_TREE)
        tree = self.folder / _TREE
        tree.mkdir()
        return tree

    def discard(self, name: str) -> None:
        """Forget a step."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def discard_all(self) -> None:
        """Forget every step: what they made is published."""
        for step in self._steps():
            self.discard(step.name)

    def hand_over(self, name: str, to: Path) -> None:
        """Move a step's files out of the staging folder, to a folder that does not exist yet.

        Hidden ones are the step's own, and go.
        """
        folder = self.folder / name
        for own in folder.glob(".*"):
            own.unlink()
        to.parent.mkdir(exist_ok=True)
        folder.rename(to)

    def _steps(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir()]

    def _remove_unfinished(self) -> None:
        steps = self._steps()
        unfinished = [path for path in steps if not (path / _DONE).is_file()]
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        if len(unfinished) == len(steps):
            shutil.rmtree(self.folder, ignore_errors=True)
