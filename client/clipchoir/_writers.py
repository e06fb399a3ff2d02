"""Results as a table, JSON Lines or CSV."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipchoir._results import Classification


class Format(str, Enum):
    """How results are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


def writer(output_format: Format) -> Callable[[Iterable[Classification], TextIO], None]:
    """The function that writes results in a format."""
    return {Format.table: _write_table, Format.jsonl: _write_jsonl, Format.csv: _write_csv}[output_format]


def _write_jsonl(results: Iterable[Classification], out: TextIO) -> None:
    for result in results:
        out.write(json.dumps(_record(result), ensure_ascii=False, allow_nan=False) + "\n")


def _record(result: Classification) -> dict[str, Any]:
    if result.error:
        return {"source": result.source, "error": result.error}
    return {
        "source": result.source,
        "label": result.label,
        "score": _rounded(result.score),
        "scores": _by_class(result.classes, result.scores),
        "encoder_scores": {
            encoder: _by_class(result.classes, scores) for encoder, scores in result.encoder_scores.items()
        },
    }


def _by_class(classes: tuple[str, ...], scores: Iterable[float]) -> dict[str, float]:
    return {name: _rounded(score) for name, score in zip(classes, scores, strict=True)}


def _rounded(score: float | np.floating[Any]) -> float:
    return round(float(score), 6)


def _write_csv(results: Iterable[Classification], out: TextIO) -> None:
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["source", "label", "score", "error"])
    for result in results:
        score = "" if math.isnan(result.score) else _rounded(result.score)
        rows.writerow([result.source, result.label, score, result.error])


def _write_table(results: Iterable[Classification], out: TextIO) -> None:
    table = Table("image", "label", "score", "next best", box=None)
    for cells in _table_rows(results):
        table.add_row(*map(Text, cells))  # as they are: file names may look like markup
    Console(file=out).print(table)


def _table_rows(results: Iterable[Classification]) -> Iterator[tuple[str, str, str, str]]:
    for result in results:
        source = result.source or ""
        if result.error:
            yield source, "", "", f"error: {result.error}"
            continue
        ranked = np.argsort(-result.scores, kind="stable")
        second = ranked[1] if len(ranked) > 1 else None
        next_best = "" if second is None else f"{result.classes[second]} {result.scores[second]:.3f}"
        yield source, result.label, f"{result.score:.3f}", next_best
