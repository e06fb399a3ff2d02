"""What `classify` writes of an image is one list."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from clipchoir import Classification
from clipchoir.cli import _writers
from clipchoir.cli._writers import Column, Format, record, write, write_parquet

RESULT = Classification(
    "a.jpg",
    0,
    label="cat",
    score=0.75,
    classes=("cat", "dog"),
    scores=np.array([0.75, 0.25], np.float32),
    encoder_scores={"tiny": np.array([0.75, 0.25], np.float32)},
)
FAILED = Classification("b.jpg", 1, error="it is no image")
ADDED = (
    Column("classes_seen", lambda result: len(result.classes), "number"),
    Column("shouted", lambda result: result.label.upper(), "text"),
    Column("halves", lambda result: dict(zip(result.classes, (result.scores / 2).tolist(), strict=True)), "by_class"),
)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[_writers.Record]:
    """Rows with columns that nothing but the list knows."""
    monkeypatch.setattr(_writers, "COLUMNS", (*_writers.COLUMNS, *ADDED))
    return [record(RESULT), record(FAILED)]


def test_a_column_of_the_list_is_in_json_lines(rows: list[_writers.Record]) -> None:
    out = io.StringIO()
    write(rows, Format.jsonl, out)
    good, failed = map(json.loads, out.getvalue().splitlines())
    assert (good["classes_seen"], good["shouted"], good["halves"]) == (2, "CAT", {"cat": 0.375, "dog": 0.125})
    assert failed == {"source": "b.jpg", "error": "it is no image"}


def test_a_plain_column_of_the_list_is_in_csv(rows: list[_writers.Record]) -> None:
    out = io.StringIO()
    write(rows, Format.csv, out)
    good, failed = csv.DictReader(io.StringIO(out.getvalue()))
    assert list(good) == ["source", "label", "score", "classes_seen", "shouted", "error"]
    assert (good["classes_seen"], good["shouted"], failed["shouted"]) == ("2", "CAT", "")


def test_a_column_of_the_list_is_in_parquet(rows: list[_writers.Record], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with (tmp_path / "out.parquet").open("wb") as out:
        write_parquet(iter(rows), rows[0], out)
    good, failed = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (good["classes_seen"], good["shouted"], good["halves"]) == (2, "CAT", [0.375, 0.125])
    assert (failed["shouted"], failed["halves"], failed["error"]) == (None, None, "it is no image")
