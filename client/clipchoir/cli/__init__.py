"""The command `clipchoir`."""

import importlib

from clipchoir.cli._app import app

__all__ = ["app", "main"]

for _command in ("classify", "embed", "evaluate", "submit", "labels", "status", "top", "web"):
    importlib.import_module(f"clipchoir.cli._{_command}")


def main() -> None:
    """Entry point."""
    app(prog_name="clipchoir")
