"""Helpers for tests of the command line."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import BIN, HEEDING_CTRL_C, encoded, noise


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pictures(folder: Path, count: int) -> list[Path]:
    """Small images, named so that the natural order is not the alphabetical one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(noise(number % 50, (64, 48))))
    return paths


def start(*command: str | Path, images: Sequence[Path] | None = None) -> "subprocess.Popen[str]":
    """Run a command beside the test.

    Args:
        command: with `-` among its arguments where there are `images`.
        images: what it is given on standard input, which stays open: it cannot come to an end by itself.
    """
    pipe = subprocess.PIPE
    words = [*HEEDING_CTRL_C, BIN / command[0], *command[1:]]
    process = subprocess.Popen(words, stdin=None if images is None else pipe, stdout=pipe, stderr=pipe, text=True)
    if images is not None:
        assert process.stdin is not None
        process.stdin.write("".join(f"{path}\n" for path in images))
        process.stdin.flush()
    return process


def wait_for_rows(partial: Path, count: int) -> None:
    until = time.monotonic() + 60
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < until
        time.sleep(0.02)
