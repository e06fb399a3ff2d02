"""Where label sets are kept: named ones in the repository, ad-hoc ones in memory before files in a cache folder."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet, LabelSetFileError
from clipchoir_steps.layout import label_set_files

_ID = re.compile("[0-9a-f]{64}")
_SUFFIX = ".safetensors"

Log = Callable[[str], object]


class NamedLabelSets:
    """The label sets of the repository. Files that appear, change or go while it is served are noticed by `refresh`."""

    def __init__(self, folder: Path, fingerprints: Mapping[str, str], default: str, log: Log) -> None:
        """Load every file of the folder.

        Args:
            folder: of safetensors files, named after their label sets.
            fingerprints: of the encoders that they must belong to.
            default: the set that must be there.
            log: is given a message for each file that cannot be used.

        Raises:
            LabelSetFileError: the default set cannot be used.
        """
        self._folder = folder
        self._fingerprints = fingerprints
        self._default = default
        self.log = log
        self._seen: dict[str, tuple[int, int, int]] = {}  # by name: what its file looked like when it was last read
        self._lock = threading.Lock()
        self._by_name = {default: EmbeddedLabelSet.load(folder / f"{default}{_SUFFIX}", fingerprints)}
        self.refresh()

    def get(self, name: str) -> EmbeddedLabelSet | None:
        """The set of this name, as it was at the last `refresh`."""
        return self._by_name.get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._by_name.copy())

    def refresh(self) -> None:
        """Read what is new in the folder. A file that cannot be used leaves what was there before in its place."""
        with self._lock:
            present = label_set_files(self._folder)
            for name, path in present.items():
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                    if self._seen.get(name) != state:
                        self._seen[name] = state
                        self._read(name, path)
            for name in self._by_name.keys() - present.keys() - {self._default}:
                del self._by_name[name]
                self._seen.pop(name, None)

    def _read(self, name: str, path: Path) -> None:
        try:
            self._by_name[name] = EmbeddedLabelSet.load(path, self._fingerprints)
        except LabelSetFileError as error:
            kept = "; the one that was there before stays" if name in self._by_name else ""
            self.log(f"label set {name} is left out: {error}{kept}")


class AdHocLabelSets:
    """Label sets that requests brought, by id: the last used ones in memory, more of them in files.

    Files outlive the server and may be shared by several. What cannot be written is kept in memory only.
    """

    def __init__(
        self, fingerprints: Mapping[str, str], folder: Path | None, memory_bytes: int, disk_bytes: int, log: Log
    ) -> None:
        """
        Args:
            fingerprints: of the encoders that the sets must belong to.
            folder: for the files; None: none are kept.
            memory_bytes: most to hold in memory.
            disk_bytes: most to hold in files.
            log: is given a message where a file cannot be read or written.
        """
        self._fingerprints = fingerprints
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._log = log
        self._lock = threading.Lock()
        self._by_id: OrderedDict[str, EmbeddedLabelSet] = OrderedDict()
        self._in_memory = self._in_files = 0
        self._folder = None if folder is None else _prepared(folder / _encoders_id(fingerprints), log)
        if self._folder is not None:
            self._in_files = sum(path.stat().st_size for path in self._files())

    @property
    def bytes_in_memory(self) -> int:
        """Size of the embeddings held in memory."""
        return self._in_memory

    @property
    def bytes_in_files(self) -> int:
        """Size of the files, as far as this process knows."""
        return self._in_files

    def get(self, key: str) -> EmbeddedLabelSet | None:
        """The set of this id, if it is in memory."""
        with self._lock:
            found = self._by_id.get(key)
            if found is not None:
                self._by_id.move_to_end(key)
            return found

    def load(self, key: str) -> EmbeddedLabelSet | None:
        """The set of this id, if there is a file of it; from then on it is in memory."""
        if self._folder is None or not _ID.fullmatch(key):
            return None
        path = self._folder / f"{key}{_SUFFIX}"
        if not path.is_file():
            return None
        try:
            found = EmbeddedLabelSet.load(path, self._fingerprints)
            os.utime(path)  # what was not used for longest goes first
        except (LabelSetFileError, OSError) as error:
            self._log(f"removed a file of the cache: {error}")
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        self._remember(key, found)
        return found

    def add(self, key: str, label_set: EmbeddedLabelSet) -> None:
        """Keep a set."""
        self._remember(key, label_set)
        if self._folder is None:
            return
        try:
            label_set.save(self._folder / f"{key}{_SUFFIX}")
            self._make_room()
        except OSError as error:
            self._log(f"label set {key} is kept in memory only: {error}")

    def _remember(self, key: str, label_set: EmbeddedLabelSet) -> None:
        with self._lock:
            if before := self._by_id.pop(key, None):
                self._in_memory -= before.nbytes
            self._by_id[key] = label_set
            self._in_memory += label_set.nbytes
            while self._in_memory > self._memory_bytes and len(self._by_id) > 1:
                _, oldest = self._by_id.popitem(last=False)
                self._in_memory -= oldest.nbytes

    def _make_room(self) -> None:
        files = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # another server may have removed it
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        self._in_files = sum(size for _, size, _ in files)
        for _, size, path in sorted(files)[:-1]:
            if self._in_files <= self._disk_bytes:
                return
            path.unlink(missing_ok=True)
            self._in_files -= size

    def _files(self) -> list[Path]:
        return [] if self._folder is None else list(self._folder.glob(f"[!.]*{_SUFFIX}"))


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where ad-hoc label sets are kept: CLIPCHOIR_CACHE, or the user's cache folder."""
    if named := environment.get("CLIPCHOIR_CACHE"):
        return Path(named)
    base = environment.get("XDG_CACHE_HOME")
    if not base:
        home = environment.get("HOME")
        base = f"{home}/.cache" if home else tempfile.gettempdir()
    return Path(base) / "clipchoir" / "label_sets"


def _encoders_id(fingerprints: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(fingerprints.items())).encode()).hexdigest()[:16]


def _prepared(folder: Path, log: Log) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log(f"label sets of requests are kept in memory only: {folder} cannot be written: {error.strerror}")
        return None
    return folder
