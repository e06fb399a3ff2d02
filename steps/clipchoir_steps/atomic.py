"""Files that appear whole or not at all: written beside their place, flushed to the disk, renamed."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write in place of `path`, which a reader sees as it was until the `with` block has ended well.

    Whatever goes wrong, `path` stays as it was and nothing is left beside it. The new file has the usual permissions,
    or those of the file that it takes the place of.

    Args:
        path: of the file; its folder must exist.
        mode: `wb` or `w`.
        options: for `open`.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            part.chmod(path.stat().st_mode)
        part.replace(path)
        flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file. Raises `OSError` as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole file in UTF-8, its line ends as they are. Raises `OSError` as `replacing` does."""
    write_bytes(path, content.encode())


def flush_folder(folder: Path) -> None:
    """See to it that a rename in this folder outlives a power cut; Windows and some network file systems cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
