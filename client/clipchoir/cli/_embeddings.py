"""Embeddings in a folder: `<encoder>.npy`, float32 (N, D), and `rows.jsonl`, which says what each row is of.

What made them stands in `encoders.json`: `{encoder: embedding id}`, see `Client.label_sets`. Rows of images that
failed are NaN, and have an `error` in `rows.jsonl`. While the folder is filled, its name ends in `.partial`.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clipchoir._results import Embedding, Vector
from clipchoir.cli._optional_imports import needed
from clipchoir.cli._resumable_output import (
    ArrayFile,
    Begin,
    CannotResumeError,
    OutputExistsError,
    RowLog,
    exclusive,
    how_to_begin,
    partial_of,
)
from clipchoir.cli._writers import PARQUET_ROWS, Record, printable
from clipchoir.errors import ClipchoirError
from clipchoir_steps import atomic

ROWS = "rows.jsonl"
_ENCODERS = "encoders.json"


class BadEmbeddingsError(ClipchoirError):
    """A folder does not hold embeddings, or not those that are needed."""


class ResumableFolder:
    """A folder of embeddings. While it is filled, its name ends in `.partial`. Use as a context manager."""

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
            overwrite: begin again.
        """
        self.out = out
        self._folder = partial_of(out)
        self._dims = dims
        self._embedding_ids = embedding_ids
        self._choice = {"resume": resume, "overwrite": overwrite}
        self.is_complete = False

    def __enter__(self) -> "ResumableFolder":
        """
        Raises:
            OutputExistsError, CannotResumeError, BadEmbeddingsError: see there.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.out, self._folder / ROWS))
            if self.out.exists() and not self.out.is_dir():
                raise OutputExistsError(
                    f"{self.out} is a file; embeddings go into a folder of their own, or into a .parquet file"
                )
            begin = how_to_begin(self.out, self._folder, **self._choice)
            self.is_complete = begin is Begin.NOTHING
            if begin is Begin.NEW and self._folder.exists():
                shutil.rmtree(self._folder)
            check_encoders(self.out if self.is_complete else self._folder, self._embedding_ids)
            if not self.is_complete:
                self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = self._folder / ROWS
        if not rows.exists() or not rows.stat().st_size:  # what is there already may be by others
            atomic.write_text(self._folder / _ENCODERS, json.dumps(dict(self._embedding_ids)) + "\n")
        others = {path.stem for path in self._folder.glob("*.npy")} - set(self._dims)
        if others:
            raise CannotResumeError(f"{self._folder} has {', '.join(sorted(others))}, too; --overwrite begins again")
        arrays = {}
        for encoder, dim in self._dims.items():
            arrays[encoder] = ArrayFile(self._folder / f"{encoder}.npy", dim)
            stack.callback(arrays[encoder].close)  # the next one may be refused
        self.log = RowLog(rows, arrays)
        stack.callback(self.log.close)

    def write(self, result: Embedding) -> None:
        """Add a row."""
        row = {"source": result.source} | ({"error": result.error} if result.error else {})
        self.log.write(row, None if result.error else result.embedding)

    def finish(self) -> None:
        """All rows are there: give the folder its name, and remove what had it before."""
        self.log.finish()
        old = self.out.with_name(self.out.name + ".old")
        if self.out.exists():
            if old.exists():
                shutil.rmtree(old)
            self.out.rename(old)
        self._folder.rename(self.out)
        if old.exists():
            shutil.rmtree(old)


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


def write_parquet(folder: Path, encoders: Iterable[str], target: IO[bytes]) -> None:
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
