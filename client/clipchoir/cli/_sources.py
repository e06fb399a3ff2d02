"""Where the images of a command come from, in an order that is the same every time."""

import glob
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TextIO

from natsort import natsort_keygen, ns

from clipchoir._images import AnImage
from clipchoir.errors import ClipchoirError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
STDIN = "-"
Named = tuple[str, AnImage]
"""A name, and where the image is."""


class BadSourceError(ClipchoirError):
    """Something on the command line is no image, or holds none."""


class Sources:
    """Images of files, folders, patterns, tar shards (WebDataset's layout) and a list on standard input.

    Nothing is held in memory but the names of one folder at a time. Folders are in natural order.
    """

    def __init__(self, arguments: Sequence[str], stdin: TextIO = sys.stdin) -> None:
        """
        Args:
            arguments: of the command.
            stdin: where `-` reads from.

        Raises:
            BadSourceError: one does not exist or holds no image.
        """
        self._arguments = arguments
        self._stdin = stdin
        for argument in arguments:
            if argument != STDIN and next(_expanded(argument), None) is None:
                raise BadSourceError(
                    f"{argument} holds no image ({', '.join(sorted(SUFFIXES))})"
                    if os.path.exists(argument)  # noqa: PTH110  a pattern may be no path
                    else f"{argument} does not exist"
                )

    def __iter__(self) -> Iterator[Named]:
        for argument in self._arguments:
            yield from _listed(self._stdin) if argument == STDIN else _expanded(argument)

    def count(self) -> int | None:
        """Number of images, if that can be found out without reading them."""
        if any(argument == STDIN or _is_shard(argument) for argument in self._arguments):
            return None
        return sum(1 for _ in self)


def _listed(lines: Iterable[str]) -> Iterator[Named]:
    for line in lines:
        if path := line.rstrip("\r\n"):
            yield path, path


def _expanded(argument: str) -> Iterator[Named]:
    path = Path(argument)
    if path.is_dir():
        yield from ((name, name) for name in _walk(argument))
    elif path.exists():
        yield from _shard(argument) if _is_shard(argument) else [(argument, argument)]
    elif glob.has_magic(argument):
        for each in sorted(glob.iglob(argument, recursive=True), key=lambda each: (_natural(each), each)):  # noqa: PTH207  absolute ones, too
            if Path(each).is_file() and (_is_shard(each) or Path(each).suffix.lower() in SUFFIXES):
                yield from _shard(each) if _is_shard(each) else [(each, each)]


_natural = natsort_keygen(alg=ns.PATH)


def _walk(folder: str) -> Iterator[str]:
    """Entry after entry in natural order; links to folders are not followed."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: (_natural(entry.name), entry.name))
    base = Path(folder)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(os.fspath(base / entry.name))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122  millions of them
            yield os.fspath(base / entry.name)


def _is_shard(path: str) -> bool:
    return path.endswith(".tar")


def _shard(path: str) -> Iterator[Named]:
    """Images in a tar file, in its order: WebDataset's samples are files that share a key, of which one is the image.

    Raises:
        BadSourceError: it is no tar file, or damaged.
    """
    last, end = "the beginning", 0
    try:
        with tarfile.open(path, "r|") as shard:
            for member in shard:
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    file = shard.extractfile(member)
                    data = file.read() if file else b""
                    if len(data) != member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield f"{path}/{member.name}", data
                last = member.name
                end = shard.offset
                shard.members = []  # type: ignore[attr-defined]  # it would keep them all
        _check_end(path, end)
    except (tarfile.TarError, OSError) as error:
        raise BadSourceError(f"{path} is not a whole tar file: {error} (after {last})") from error


def _check_end(path: str, end: int) -> None:
    """`tarfile` takes a damaged header behind the first, and a file that was cut between two members, for the end.

    Raises:
        tarfile.ReadError: there is no block of zeros, which ends a tar file.
    """
    if not Path(path).is_file():  # a pipe is read once
        return
    with Path(path).open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a damaged header, or no end")
