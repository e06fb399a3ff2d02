"""Compares what a TensorRT engine answered with what its checkpoint answers: `check.py EXPECTED OUTPUT`.

`clipchoir-export tensorrt` puts a copy into the repository, beside the script that builds the engine. It runs in
NVIDIA's Triton image, so it needs nothing but Python's standard library.
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

_OFF_1 = 1e-3  # how far an embedding's length may be from 1

Rows = list[list[float]]


def read_output(path: Path, name: str) -> Rows:
    """One output tensor (N, D) of the file that `trtexec --exportOutput` writes.

    The file is a list of objects: "name", "dimensions" such as "8x1280", and "values", row after row.

    Raises:
        ValueError: it is another file, or has no such tensor.
    """
    text = re.sub(r"-?\b(nan|inf)\b", "NaN", path.read_text(encoding="utf-8"))  # as C++ prints them; JSON has neither
    for tensor in json.loads(text):
        if tensor["name"] == name:
            rows, columns = (int(size) for size in tensor["dimensions"].split("x"))
            values = [float(value) for value in tensor["values"]]
            if len(values) != rows * columns:
                raise ValueError(f'output "{name}" has {len(values)} values, its dimensions are {rows} x {columns}')
            return [values[row * columns : (row + 1) * columns] for row in range(rows)]
    raise ValueError(f'there is no output "{name}"')


def compare(expected: Rows, actual: Rows, bar: float) -> tuple[str, str]:
    """Compare embeddings row by row.

    Args:
        expected: of the checkpoint, rows of length 1.
        actual: of the engine.
        bar: cosine that each pair must reach.

    Returns:
        What was measured, and what is wrong with it: empty if nothing is.
    """
    if [len(row) for row in actual] != [len(row) for row in expected]:
        shapes = [f"{len(rows)} x {len(rows[0]) if rows else 0}" for rows in (actual, expected)]
        return "", f"its embeddings are {shapes[0]}, the checkpoint's are {shapes[1]}"
    if not all(math.isfinite(value) for row in actual for value in row):
        return "", "its embeddings are not all finite numbers"
    lengths = [math.sqrt(_dot(row, row)) for row in actual]
    if max(abs(length - 1) for length in lengths) > _OFF_1:
        return "", f"its embeddings have lengths from {min(lengths):.3g} to {max(lengths):.3g} instead of 1"
    pairs = zip(actual, lengths, expected, strict=True)
    lowest = min(_dot(row, original) / length for row, length, original in pairs)
    mistaken = sum(_is_mistaken(row, index, expected, bar) for index, row in enumerate(actual))
    figures = f"lowest cosine {lowest:.6f} on {len(actual)} rows; {mistaken} nearer to another row's original"
    if lowest < bar:
        return figures, f"cosine {lowest:.6f}, needed is {bar}"
    return figures, f"{mistaken} embeddings are nearer to another row's original" if mistaken else ""


def _is_mistaken(row: list[float], index: int, expected: Rows, bar: float) -> bool:
    """Whether an embedding is nearer to another row's original, of those that the bar can tell from its own."""
    own = expected[index]
    others = [other for other in expected if _dot(own, other) < bar]
    return any(_dot(row, other) >= _dot(row, own) for other in others)


def _dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def main(expected_file: Path, output_file: Path) -> str:
    """Compare two files, print what was measured, and return what is wrong."""
    expected: dict[str, Any] = json.loads(expected_file.read_text(encoding="utf-8"))
    try:
        actual = read_output(output_file, expected["output"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"what trtexec exported cannot be used: {error}"
    figures, wrong = compare(expected["embeddings"], actual, expected["bar"])
    if figures:
        print(f"{expected['model']}: {figures}")
    return wrong


if __name__ == "__main__":
    wrong = main(Path(sys.argv[1]), Path(sys.argv[2]))
    if wrong:
        sys.exit(f"the engine differs from its checkpoint: {wrong}")
