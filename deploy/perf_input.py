#!/usr/bin/env python3
"""Picture files -> the JSON that perf_analyzer takes with --input-data. The standard library alone."""

import argparse
import base64
import json
import sys
from pathlib import Path


def element(picture: bytes) -> dict[str, object]:
    """One row of `image`: perf_analyzer wants Triton's bytes of a STRING, the length in four of them first."""
    return {"image": {"b64": base64.b64encode(len(picture).to_bytes(4, "little") + picture).decode()}}


def main() -> None:
    """Write the JSON to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="taken with its sub-folders; every file in it must be a picture")
    folder: Path = parser.parse_args().folder
    pictures = sorted(path for path in folder.rglob("*") if path.is_file())
    if not pictures:
        sys.exit(f"{folder} has no files")
    json.dump({"data": [element(path.read_bytes()) for path in pictures]}, sys.stdout)


if __name__ == "__main__":
    main()
