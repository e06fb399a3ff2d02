"""Steps of a build that took long and are done, kept beside the target until the whole is published."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipchoir_export.locking import exclusively

_DONE = ".done"
_LOCK = ".lock"


class Staging:
    """A hidden folder of finished steps. A build that was interrupted finds them again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextlib.contextmanager
    def beside(cls, target: Path) -> Iterator["Staging"]:
        """The staging folder of a target, for one build at a time.

        When the build fails, finished steps stay and unfinished ones go; when it succeeds, the folder goes.

        Raises:
            RepositoryError: another build of the same target is running.
        """
        folder = target.parent / f".{target.name}.building"
        folder.mkdir(parents=True, exist_ok=True)
        staging = cls(folder)
        with exclusively(folder / _LOCK, f"build of {target}"):
            try:
                yield staging
            except BaseException:
                staging._remove_unfinished()
                raise
            shutil.rmtree(folder)

    def step(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a step: as it was left by an earlier build with the same key, or made now."""
        folder = self.folder / name
        content = json.dumps(key, sort_keys=True)
        if (folder / _DONE).is_file() and (folder / _DONE).read_text(encoding="utf-8") == content:
            return folder
        self.discard(name)
        folder.mkdir()
        make(folder)
        (folder / _DONE).write_text(content, encoding="utf-8")
        return folder

    def has(self, name: str, key: Mapping[str, Any]) -> bool:
        """Whether a step is there already."""
        done = self.folder / name / _DONE
        return done.is_file() and done.read_text(encoding="utf-8") == json.dumps(key, sort_keys=True)

    def discard(self, name: str) -> None:
        """Forget a step."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def hand_over(self, name: str, to: Path) -> None:
        """Move a step's files out of the staging folder, to a folder that does not exist yet.

        Hidden ones are the step's own, and go.
        """
        folder = self.folder / name
        for own in folder.glob(".*"):
            own.unlink()
        folder.rename(to)

    def _remove_unfinished(self) -> None:
        steps = [path for path in self.folder.iterdir() if path.is_dir()]
        unfinished = [path for path in steps if not (path / _DONE).is_file()]
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        if len(unfinished) == len(steps):
            shutil.rmtree(self.folder, ignore_errors=True)
