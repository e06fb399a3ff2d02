"""Embeddings in a folder: `<encoder>.npy`, float32 (N, D), and `rows.jsonl`, which says what each row is of.

What made them stands in `encoders.json`: `{encoder: embedding id}`, see `Client.label_sets`. Rows of images that
failed are NaN, and have an `error` in `rows.jsonl`. While the folder is filled, its name ends in `.partial`.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipchoir._results import Embedding, Vector
from clipchoir.cli._journal import CannotResumeError, OutputExistsError, check_same_image, lock
from clipchoir.cli._optional_imports import needed
from clipchoir.cli._sources import Named
from clipchoir.cli._writers import PARQUET_ROWS, Record, line, printable
from clipchoir.errors import ClipchoirError

ROWS = "rows.jsonl"
_ENCODERS = "encoders.json"
_HEADER = 128  # bytes of an .npy file of version 1.0 before its numbers


class BadEmbeddingsError(ClipchoirError):
    """A folder does not hold embeddings, or not those that are needed."""


class Store:
    """A folder that is being filled. Use as a context manager."""

    def __init__(
        self,
        out: Path,
        dims: Mapping[str, int],
        embedding_ids: Mapping[str, str],
        *,
        resume: bool,
        overwrite: bool,
    ) -> None:
        """
        Args:
            out: the folder, as it will be called.
            dims: length of each encoder's embeddings, by encoder.
            embedding_ids: of the encoders, as the server says them.
            resume: go on after the rows that are there.
            overwrite: begin anew.

        Raises:
            OutputExistsError, CannotResumeError, BadEmbeddingsError: see there.
        """
        self.out = out
        self._folder = out.with_name(out.name + ".partial")
        self._dims = dims
        self._embedding_ids = embedding_ids
        self.is_complete = False
        if out.exists() and not out.is_dir():
            raise OutputExistsError(
                f"{out} is a file; embeddings go into a folder of their own, or into a .parquet file"
            )
        if overwrite and self._folder.exists():
            if (self._folder / ROWS).exists():
                with (self._folder / ROWS).open("ab") as rows:
                    lock(rows, self._folder / ROWS)
            shutil.rmtree(self._folder)
        if self._folder.exists():
            if not resume:
                raise OutputExistsError(
                    f"{self._folder} holds an interrupted run; --resume goes on with it, --overwrite begins anew"
                )
        elif out.exists() and not overwrite:
            if not resume:
                raise OutputExistsError(f"{out} exists; --overwrite replaces it")
            self.is_complete = True
        check_encoders(out if self.is_complete else self._folder, embedding_ids)

    def __enter__(self) -> "Store":
        self._stack = ExitStack()
        if self.is_complete:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rows = self._stack.enter_context((self._folder / ROWS).open("a+b"))
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        lock(self._rows, self._folder / ROWS)
        if not self._rows.tell():  # what is there already may be by others
            new = self._folder / f"{_ENCODERS}.new"
            new.write_text(json.dumps(dict(self._embedding_ids)) + "\n")
            new.replace(self._folder / _ENCODERS)
        strangers = {path.stem for path in self._folder.glob("*.npy")} - set(self._dims)
        if strangers:
            raise CannotResumeError(f"{self._folder} has {', '.join(sorted(strangers))}, too; --overwrite begins anew")
        self._files = {encoder: self._opened(encoder, dim) for encoder, dim in self._dims.items()}

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _opened(self, encoder: str, dim: int) -> BinaryIO:
        path = self._folder / f"{encoder}.npy"
        file = self._stack.enter_context(path.open("r+b" if path.exists() else "w+b"))
        head = file.read(_HEADER)
        rows = max(0, path.stat().st_size - _HEADER) // (4 * dim)
        if len(head) < _HEADER:  # new, or killed before anything was written
            file.seek(0)
            file.write(_header(0, dim))
        elif head not in (_header(0, dim), _header(rows, dim)):  # killed before it got its name: it has all rows
            raise CannotResumeError(f"{path} is not of embeddings of {dim} numbers; --overwrite begins anew")
        file.seek(0, os.SEEK_END)
        return file

    def skip(self, images: Iterator[Named]) -> int:
        """Go past the images that are there, and cut off rows that are not whole.

        Returns:
            How many rows there are.

        Raises:
            CannotResumeError: they are of other images.
        """
        whole = min((self._files[name].tell() - _HEADER) // (4 * dim) for name, dim in self._dims.items())
        count = end = 0
        self._rows.seek(0)
        for raw in islice(self._rows, whole):
            if not raw.endswith(b"\n"):
                break
            count += 1
            check_same_image(json.loads(raw), count, next(images, None), self._folder)
            end += len(raw)
        self._truncate(count, end)
        return count

    def cut(self, count: int) -> None:
        """Keep so many rows, and drop those behind them."""
        self._rows.seek(0)  # what was written is in the file then
        self._truncate(count, sum(map(len, islice(self._rows, count))))

    def _truncate(self, count: int, end: int) -> None:
        self._rows.truncate(end)
        self._rows.seek(0, os.SEEK_END)
        for encoder, file in self._files.items():
            file.truncate(_HEADER + 4 * self._dims[encoder] * count)
            file.seek(0, os.SEEK_END)

    def write(self, result: Embedding) -> None:
        """Add a row."""
        for encoder, dim in self._dims.items():
            values = np.full(dim, np.nan, np.float32) if result.error else result.embedding[encoder]
            self._files[encoder].write(np.ascontiguousarray(values, "<f4").tobytes())
        row = {"source": result.source} | ({"error": result.error} if result.error else {})
        self._rows.write(line(row).encode())

    def finish(self) -> None:
        """All rows are there: give the folder its name, and remove what had it before."""
        count = 0
        for encoder, dim in self._dims.items():
            file = self._files[encoder]
            count = (file.tell() - _HEADER) // (4 * dim)
            file.seek(0)
            file.write(_header(count, dim))
        self._stack.close()
        old = self.out.with_name(self.out.name + ".old")
        if self.out.exists():
            if old.exists():
                shutil.rmtree(old)
            self.out.rename(old)
        self._folder.rename(self.out)
        if old.exists():
            shutil.rmtree(old)


def _header(rows: int, dim: int) -> bytes:
    """Of NumPy's format 1.0, filled up so that it has the same length for any number of rows."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


def rows_of(folder: Path) -> Iterator[Record]:
    """What each row of a folder is of."""
    with (folder / ROWS).open("rb") as lines:
        yield from map(json.loads, lines)


def check_encoders(folder: Path, embedding_ids: Mapping[str, str]) -> None:
    """Embeddings that are there have to be by the server's encoders. A folder that does not say by which is believed.

    Raises:
        BadEmbeddingsError: they are by others.
    """
    path = folder / _ENCODERS
    if not path.exists():
        return
    try:
        found = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BadEmbeddingsError(f"{path} cannot be read: {error}; `clipchoir embed` writes such files") from error
    for encoder, served in embedding_ids.items():
        if encoder in found and found[encoder] != served:
            raise BadEmbeddingsError(
                f"{folder} holds embeddings by another {encoder} ({found[encoder]}) than the server's ({served}): the "
                "checkpoint, its preprocessing or its precision differ; remove it, or name another folder"
            )


def load(folder: Path, encoders: Iterable[str]) -> dict[str, Vector]:
    """Embeddings of a folder, float32 (N, D) by encoder, which stay on disk until they are used.

    Raises:
        BadEmbeddingsError: one is missing, or they do not belong together.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for encoder in encoders:
        path = folder / f"{encoder}.npy"
        try:
            found[encoder] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BadEmbeddingsError(
                f"{path} cannot be read: {error}; `clipchoir embed` writes such folders"
            ) from error
    if not (folder / ROWS).exists():
        raise BadEmbeddingsError(f"{folder} has no {ROWS}; `clipchoir embed` writes such folders")
    counts = {len(values) for values in found.values()} | {sum(1 for _ in rows_of(folder))}
    if len(counts) != 1:
        raise BadEmbeddingsError(f"the files in {folder} differ in the number of their rows")
    return found


def write_parquet(folder: Path, encoders: Iterable[str], target: Path) -> None:
    """The same as one Parquet file: `source`, `error`, and a list of numbers for each encoder.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, parquet = needed("parquet", "pyarrow", "pyarrow.parquet")
    embeddings = load(folder, encoders)
    fields: list[Any] = [("source", pyarrow.string()), ("error", pyarrow.string())]
    fields += [(encoder, pyarrow.list_(pyarrow.float32())) for encoder in embeddings]
    schema = pyarrow.schema(fields)
    rows, start = rows_of(folder), 0
    with parquet.ParquetWriter(target, schema) as out:
        while some := list(islice(rows, PARQUET_ROWS)):
            columns: list[Any] = [
                pyarrow.array([printable(row["source"]) for row in some], pyarrow.string()),
                pyarrow.array([row.get("error") for row in some], pyarrow.string()),
            ]
            for values in embeddings.values():
                columns.append(_lists(pyarrow, values[start : start + len(some)]))
            out.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
            start += len(some)


def _lists(pyarrow: Any, part: Vector) -> Any:
    """Rows as lists of numbers; a row of NaN is no list."""
    missing = np.isnan(part[:, 0])
    ends = np.cumsum(np.where(missing, 0, part.shape[1]))
    offsets = pyarrow.array(np.concatenate([[0], ends]).astype(np.int32))
    return pyarrow.ListArray.from_arrays(offsets, pyarrow.array(part[~missing].ravel()), mask=pyarrow.array(missing))
