"""The output of a long run, which may be interrupted at any moment and gone on with: one log of rows for all."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from clipchoir.cli._sources import Named
from clipchoir.cli._writers import Format, Record, line, write, write_parquet
from clipchoir.errors import ClipchoirError
from clipchoir_steps import atomic


class OutputExistsError(ClipchoirError):
    """There are results already, and nothing was said about what to do with them."""


class CannotResumeError(ClipchoirError):
    """What is there does not belong to what is asked for now."""


class Begin(Enum):
    """What a run does with what is there."""

    NEW = auto()
    RESUME = auto()
    NOTHING = auto()  # all is there


def partial_of(out: Path) -> Path:
    """Where a run writes until all is there."""
    return out.with_name(out.name + ".partial")


def how_to_begin(out: Path, partial: Path, *, resume: bool, overwrite: bool) -> Begin:
    """Decide by what is there and what the user says.

    Args:
        out: the output.
        partial: what an interrupted run has left.
        resume: go on after the rows that are there.
        overwrite: begin again, whatever is there.

    Raises:
        OutputExistsError: something is there, and the user says nothing of it.
    """
    if overwrite:
        return Begin.NEW
    if partial.exists():
        if not resume:
            raise OutputExistsError(
                f"{partial} holds the rows of an interrupted run; --resume goes on with it, --overwrite begins again"
            )
        return Begin.RESUME
    if not out.exists():
        return Begin.NEW
    if not resume:
        raise OutputExistsError(f"{out} exists; --overwrite replaces it")
    return Begin.NOTHING


@contextlib.contextmanager
def exclusive(path: Path, what: Path) -> Iterator[None]:
    """Keep other runs away from an output, where its file system has locks.

    Args:
        path: of the output, in a folder that is there; the lock lies beside it while it is held.
        what: is written, for the message.

    Raises:
        CannotResumeError: another run is writing it.
        OSError: there is no such folder.
    """
    path.parent.stat()  # FileLock would make it
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:  # an OSError, too
        raise CannotResumeError(f"another run is writing {what}; wait for it, or stop it") from error
    except OSError:  # what cannot be written here is found out by whoever writes it
        pass
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            if lock.is_locked:
                file.unlink()
        lock.release()


class ArrayFile:
    """An `.npy` file, float32 (N, D), to which rows are added."""

    HEADER = 128  # bytes of the format's version 1.0 before the numbers

    def __init__(self, path: Path, dim: int) -> None:
        """
        Raises:
            CannotResumeError: there is a file of other rows.
        """
        self._dim = dim
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        head = self._file.read(self.HEADER)
        rows = max(0, path.stat().st_size - self.HEADER) // (4 * dim)
        # New, killed before anything was written, or killed after `finish`: there may be more rows this time.
        if len(head) < self.HEADER or head == self._header(rows):
            self._file.seek(0)
            self._file.write(self._header(0))
        elif head != self._header(0):
            self._file.close()
            raise CannotResumeError(f"{path} is not of embeddings of {dim} numbers; --overwrite begins again")
        self._file.seek(0, os.SEEK_END)

    @property
    def rows(self) -> int:
        """How many whole rows there are."""
        return max(0, self._file.tell() - self.HEADER) // (4 * self._dim)

    def append(self, values: Any) -> None:
        """Add a row; None: of NaN."""
        row = np.full(self._dim, np.nan, "<f4") if values is None else np.ascontiguousarray(values, "<f4")
        self._file.write(row.tobytes())

    def truncate(self, rows: int) -> None:
        """Drop the rows behind the first ones."""
        self._file.truncate(self.HEADER + 4 * self._dim * rows)
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> None:
        """Write down how many rows there are."""
        header = self._header(self.rows)
        self._file.seek(0)
        self._file.write(header)
        self._file.seek(0, os.SEEK_END)

    def flush(self) -> None:
        """Hand the rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _header(self, rows: int) -> bytes:
        """Header filled up to one length for any number of rows."""
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {self._dim}), }}"
        size = (self.HEADER - 10).to_bytes(2, "little")
        return b"\x93NUMPY\x01\x00" + size + text.ljust(self.HEADER - 11).encode() + b"\n"


class RowLog:
    """Rows of JSON in one file, and the numbers that belong to them in others. What is not whole does not count."""

    def __init__(self, path: Path, arrays: Mapping[str, ArrayFile] | None = None) -> None:
        """
        Args:
            path: of the JSON Lines; it is made if it is not there.
            arrays: by name.
        """
        self.path = path
        self._arrays = arrays or {}
        self._file: BinaryIO = path.open("a+b")

    def skip(self, images: Iterator[Named], seen: Callable[[Record], object] = lambda _: None) -> int:
        """Go past the images whose rows are there, and cut off rows that are not whole.

        Args:
            images: of this run.
            seen: is given each row that is there.

        Returns:
            How many rows there are.

        Raises:
            CannotResumeError: the rows are of other images.
        """
        whole = min((array.rows for array in self._arrays.values()), default=None)
        count = end = 0
        self._file.seek(0)
        for raw in islice(self._file, whole):
            row = _parsed(raw)
            if row is None:
                break
            count += 1
            source = (next(images, None) or (None,))[0]
            if source != row["source"]:
                raise CannotResumeError(
                    f"row {count} of {self.path} is of {row['source']}, but the image in its place is now "
                    f"{source or 'none'}; --overwrite begins again"
                )
            seen(row)
            end += len(raw)
        self._truncate(count, end)
        return count

    def write(self, row: Record, values: Mapping[str, Any] | None = None) -> None:
        """Add a row, and its numbers by the arrays' names; those that are missing are NaN."""
        for name, array in self._arrays.items():
            array.append((values or {}).get(name))
        self._file.write(line(row).encode())

    def flush(self) -> None:
        """Hand the rows to the system: they outlive this process."""
        self._file.flush()

    def cut(self, count: int) -> None:
        """Keep the first `count` rows, and drop the others."""
        self._file.seek(0)  # what was written is in the file then
        self._truncate(count, sum(map(len, islice(self._file, count))))

    def finish(self) -> None:
        """Hand everything to the disk, and close."""
        for array in self._arrays.values():
            array.finish()
            array.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        """Close the files."""
        for array in self._arrays.values():
            array.close()
        self._file.close()

    def _truncate(self, count: int, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)
        for array in self._arrays.values():
            array.truncate(count)


class ResumableFile:
    """An output file. Until all rows are there, they are JSON Lines beside it, under its name with `.partial`.

    What the rows were made with stands in a file with `.settings`. Use as a context manager.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """
        Args:
            out: the output file.
            settings: with which rows are made; others than before cannot be gone on with.
            resume: go on after the rows that are there.
            overwrite: begin again, whatever is there.
        """
        self.out = out
        self._partial = partial_of(out)
        self._settings_file = out.with_name(out.name + ".partial.settings")
        self._settings = json.dumps(settings, sort_keys=True)
        self._choice = {"resume": resume, "overwrite": overwrite}
        self.is_complete = False

    def __enter__(self) -> "ResumableFile":
        """
        Raises:
            OutputExistsError, CannotResumeError: see there; or another run writes to it.
            OSError: it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive(self.out, self._partial))
            begin = how_to_begin(self.out, self._partial, **self._choice)
            self.is_complete = begin is Begin.NOTHING
            if not self.is_complete:
                if begin is Begin.RESUME:
                    self._check_settings()
                self.log = RowLog(self._partial)
                stack.callback(self._close)
                if begin is Begin.NEW:
                    self.log.cut(0)
                atomic.write_text(self._settings_file, self._settings)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def finish(self, output_format: Format) -> None:
        """Turn the rows into the output."""
        self.log.finish()
        if output_format is Format.jsonl:
            self._partial.replace(self.out)
        else:
            self._convert(output_format)
            self._partial.unlink()
        atomic.flush_folder(self.out.parent)
        self._settings_file.unlink(missing_ok=True)

    def _close(self) -> None:
        self.log.close()
        if self._partial.exists() and not self._partial.stat().st_size:  # nothing was begun
            self._partial.unlink()
            self._settings_file.unlink(missing_ok=True)

    def _convert(self, output_format: Format) -> None:
        with self._partial.open("rb") as lines:
            rows = map(json.loads, lines)
            if output_format is Format.parquet:
                with atomic.replacing(self.out) as out:
                    write_parquet(rows, self._first_good(), out)
            else:
                # File names that are not UTF-8 are written as they are.
                text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
                with atomic.replacing(self.out, "w", **text) as out:
                    write(rows, output_format, out)

    def _first_good(self) -> Record | None:
        with self._partial.open("rb") as lines:
            return next((row for row in map(json.loads, lines) if "error" not in row), None)

    def _check_settings(self) -> None:
        before = self._settings_file.read_text() if self._settings_file.exists() else self._settings
        if before != self._settings:
            raise CannotResumeError(
                f"the rows in {self._partial} were made with {before}, now {self._settings} is asked for; --overwrite "
                "begins again"
            )


def _parsed(raw: bytes) -> Record | None:
    """A row, or None if it is not whole."""
    if not raw.endswith(b"\n"):
        return None
    try:
        row = json.loads(raw)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "source" in row else None
