"""The output of a long run, which may be interrupted at any moment and gone on with."""

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from clipchoir.cli._sources import Named
from clipchoir.cli._writers import Format, Record, line, write, write_parquet
from clipchoir.errors import ClipchoirError


class OutputExistsError(ClipchoirError):
    """There are results already, and nothing was said about what to do with them."""


class CannotResumeError(ClipchoirError):
    """What is there does not belong to what is asked for now."""


class Journal:
    """Rows in JSON Lines beside the output file, under its name with `.partial`, until all are there.

    What the rows were made with stands in a file with `.settings`. Then they become the output, in its format. Use as a
    context manager.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """
        Args:
            out: the output file.
            settings: with which rows are made; others than before cannot be gone on with.
            resume: go on after the rows that are there.
            overwrite: begin anew, whatever is there.

        Raises:
            OutputExistsError, CannotResumeError: see there; or another run writes to it.
            OSError: it cannot be written.
        """
        self.out = out
        self._partial = out.with_name(out.name + ".partial")
        self._settings_file = out.with_name(out.name + ".partial.settings")
        self._settings = json.dumps(settings, sort_keys=True)
        self.is_complete = False
        is_begun = self._partial.exists()
        if is_begun and not (overwrite or resume):
            raise OutputExistsError(
                f"{self._partial} holds the rows of an interrupted run; --resume goes on with it, --overwrite "
                "begins anew"
            )
        if out.exists() and not (overwrite or is_begun):
            if not resume:
                raise OutputExistsError(f"{out} exists; --overwrite replaces it")
            self.is_complete = True
            return
        self._file: BinaryIO = self._partial.open("ab")
        try:
            lock(self._file, self._partial)
            if overwrite:
                self._file.truncate(0)
            elif is_begun:
                self._check_settings()
            self._settings_file.write_text(self._settings)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_complete:
            return
        self._file.close()
        if self._partial.exists() and not self._partial.stat().st_size:  # nothing was begun
            self._partial.unlink()
            self._settings_file.unlink(missing_ok=True)

    def skip(self, images: Iterator[Named], seen: Callable[[Record], object]) -> int:
        """Go past the images whose rows are there, and cut off a row that is not whole.

        Args:
            images: of this run.
            seen: is given each row that is there.

        Returns:
            How many rows there are.

        Raises:
            CannotResumeError: the rows are of other images.
        """
        count = end = 0
        with self._partial.open("rb") as rows:
            for raw in rows:
                row = _parsed(raw)
                if row is None:
                    break
                count += 1
                check_same_image(row, count, next(images, None), self._partial)
                seen(row)
                end += len(raw)
        self._file.truncate(end)
        return count

    def write(self, row: Record) -> None:
        """Add a row; `flush` makes it last."""
        self._file.write(line(row).encode())

    def flush(self) -> None:
        """Hand the rows to the system: they outlive this process."""
        self._file.flush()

    def cut(self, count: int) -> None:
        """Keep so many rows, and drop those behind them."""
        self._file.flush()
        with self._partial.open("rb") as rows:
            self._file.truncate(sum(map(len, islice(rows, count))))

    def finish(self, output_format: Format) -> None:
        """Turn the rows into the output."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if output_format is Format.jsonl:
            self._partial.replace(self.out)
        else:
            self._converted(output_format).replace(self.out)
            self._partial.unlink()
        self._settings_file.unlink(missing_ok=True)

    def _converted(self, output_format: Format) -> Path:
        target = self.out.with_name(self.out.name + ".tmp")
        try:
            with self._partial.open("rb") as lines:
                rows = map(json.loads, lines)
                if output_format is Format.parquet:
                    write_parquet(rows, self._first_good(), target)
                else:
                    # File names that are not UTF-8 are written as they are.
                    with target.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
                        write(rows, output_format, out)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target

    def _first_good(self) -> Record | None:
        with self._partial.open("rb") as lines:
            return next((row for row in map(json.loads, lines) if "error" not in row), None)

    def _check_settings(self) -> None:
        before = self._settings_file.read_text() if self._settings_file.exists() else self._settings
        if before != self._settings:
            raise CannotResumeError(
                f"the rows in {self._partial} were made with {before}, now {self._settings} is asked for; --overwrite "
                "begins anew"
            )


def lock(file: BinaryIO, path: Path) -> None:
    """Keep other runs out of a file until it is closed, where the system can.

    Raises:
        CannotResumeError: another run is at it, or has just finished it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CannotResumeError(f"another run is writing {path}; wait for it, or stop it") from error
    except OSError:  # a file system without locks
        return
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise CannotResumeError(f"another run has just finished {path}")


def check_same_image(row: Record, number: int, image: Named | None, partial: Path) -> None:
    """A row that is there has to be of the image in its place.

    Raises:
        CannotResumeError: it is of another one.
    """
    source = image[0] if image else None
    if source != row["source"]:
        raise CannotResumeError(
            f"row {number} of {partial} is of {row['source']}, but the image in its place is now "
            f"{source or 'none'}; --overwrite begins anew"
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
