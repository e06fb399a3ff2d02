"""Results as a table, JSON Lines, CSV or Parquet."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipchoir._results import Classification, Vector
from clipchoir.cli._optional_imports import needed

_TABLE_ROWS = 200  # of which one table is made, before the next: there may be millions
PARQUET_ROWS = 10_000  # in a row group

Record = dict[str, Any]


class Format(str, Enum):
    """How results are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"

    @classmethod
    def of(cls, path: Path) -> "Format | None":
        """That the suffix of a file means."""
        return {".jsonl": cls.jsonl, ".csv": cls.csv, ".parquet": cls.parquet}.get(path.suffix)


@dataclass(frozen=True)
class Column:
    """A column of results, as every format has it. The image and its error are beside these.

    Attributes:
        name: of the column.
        of: result -> the value in JSON: text, a number, or by class a number.
        kind: how formats of columns keep it.
    """

    name: str
    of: Callable[[Classification], Any]
    kind: Literal["text", "number", "by_class", "by_encoder_and_class"]


COLUMNS = (
    Column("label", lambda result: result.label, "text"),
    Column("score", lambda result: _rounded(result.score), "number"),
    Column("scores", lambda result: _by_class(result.classes, result.scores), "by_class"),
    Column(
        "encoder_scores",
        lambda result: {name: _by_class(result.classes, each) for name, each in result.encoder_scores.items()},
        "by_encoder_and_class",
    ),
)
"""The one list of what `classify` writes of an image: to add a column, add it here."""


def record(result: Classification) -> Record:
    """A result as it stands in JSON Lines."""
    if result.error:
        return {"source": result.source, "error": result.error}
    return {"source": result.source} | {column.name: column.of(result) for column in COLUMNS}


def line(content: Record) -> str:
    """A line of JSON Lines. File names that are not UTF-8 are escaped, and read back as they were."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(content, allow_nan=False)
    return text + "\n"


def write(records: Iterable[Record], output_format: Format, out: IO[str]) -> None:
    """Write results as they come.

    Args:
        records: of `record`.
        output_format: any but Parquet, which is no text.
        out: where to.
    """
    {Format.table: _write_table, Format.jsonl: _write_jsonl, Format.csv: _write_csv}[output_format](records, out)


def printable(source: str | None) -> str | None:
    """A file name, with a mark for what is not UTF-8 in it."""
    return source.encode("utf-8", "replace").decode() if source else source


def _by_class(classes: tuple[str, ...], scores: Vector) -> dict[str, float]:
    return {name: _rounded(score) for name, score in zip(classes, scores.tolist(), strict=True)}


def _rounded(score: float) -> float:
    return round(score, 6)


def _write_jsonl(records: Iterable[Record], out: IO[str]) -> None:
    for each in records:
        out.write(line(each))


def _write_csv(records: Iterable[Record], out: IO[str]) -> None:
    rows = csv.writer(out, lineterminator="\n")
    plain = [column.name for column in COLUMNS if column.kind in ("text", "number")]
    names = ["source", *plain, "error"]
    rows.writerow(names)
    for each in records:
        rows.writerow([each.get(name, "") for name in names])


def _write_table(records: Iterable[Record], out: IO[str]) -> None:
    console, iterator, first = Console(file=out), iter(records), True
    while some := list(islice(iterator, _TABLE_ROWS)):
        table = Table("image", "label", "score", "next best", box=None, show_header=first)
        for each in some:
            table.add_row(*map(Text, _cells(each)))  # as they are: file names may look like markup
        console.print(table)
        first = False


def _cells(each: Record) -> tuple[str, str, str, str]:
    if "error" in each:
        return printable(each["source"]) or "", "", "", f"error: {each['error']}"
    others = [(score, name) for name, score in each["scores"].items() if name != each["label"]]
    score, name = max(others, key=lambda pair: pair[0], default=(math.nan, ""))
    return printable(each["source"]) or "", each["label"], f"{each['score']:.3f}", f"{name} {score:.3f}" if name else ""


def write_parquet(records: Iterator[Record], good: Record | None, out: IO[bytes]) -> None:
    """Write results to a Parquet file.

    Its columns are `source`, `error`, those of `COLUMNS`, and `<encoder>_scores` for the encoders, in the order of the
    classes, which are in the schema's metadata under `classes`, as JSON.

    Args:
        records: of `record`.
        good: the first of them without an error, if there is one; it names classes and encoders.
        out: the file.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, parquet = needed("parquet", "pyarrow", "pyarrow.parquet")
    classes = list(good["scores"]) if good else []
    encoders = list(good["encoder_scores"]) if good else []
    kinds = {"text": pyarrow.string(), "number": pyarrow.float32(), "by_class": pyarrow.list_(pyarrow.float32())}
    fields = [("source", pyarrow.string()), ("error", pyarrow.string())]
    for column in COLUMNS:
        if column.kind == "by_encoder_and_class":
            fields += [(_of_encoder(column, encoder), kinds["by_class"]) for encoder in encoders]
        else:
            fields.append((column.name, kinds[column.kind]))
    schema = pyarrow.schema(fields, metadata={"classes": json.dumps(classes, ensure_ascii=False)})

    def listed(values: Mapping[str, float] | None) -> list[float] | None:
        return [values[name] for name in classes] if values else None

    def row(each: Record) -> Record:
        flat = {"source": printable(each["source"]), "error": each.get("error")}
        for column in COLUMNS:
            value = each.get(column.name)
            if column.kind == "by_encoder_and_class":
                flat |= {_of_encoder(column, encoder): listed((value or {}).get(encoder)) for encoder in encoders}
            else:
                flat[column.name] = listed(value) if column.kind == "by_class" else value
        return flat

    with parquet.ParquetWriter(out, schema) as writer:
        while some := list(islice(records, PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist([row(each) for each in some], schema=schema))


def _of_encoder(column: Column, encoder: str) -> str:
    return f"{encoder}_{column.name.removeprefix('encoder_')}"
