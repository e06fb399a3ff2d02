"""The command `clipchoir`."""

import importlib
import io
import sys

from clipchoir.cli._app import app

__all__ = ["app", "main"]

for _command in ("classify", "embed", "evaluate", "submit", "labels", "status", "top", "web"):
    importlib.import_module(f"clipchoir.cli._{_command}")


def main() -> None:
    """Entry point."""
    for stream in (sys.stdin, sys.stdout):  # file names may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    app(prog_name="clipchoir")
