"""Packages that only some commands need."""

import importlib
from types import ModuleType
from typing import Any

from clipchoir.errors import ClipchoirError


class MissingExtraError(ClipchoirError):
    """A command needs packages that are not installed."""


def needed(extra: str, *modules: str) -> Any:
    """Import what an extra installs.

    Raises:
        MissingExtraError: it is not installed; the message says how to.
    """
    found: list[ModuleType] = []
    for name in modules:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            package = name.partition(".")[0]
            why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
            raise MissingExtraError(f"this needs {package}, which {why}: pip install 'clipchoir[{extra}]'") from error
    return found[0] if len(found) == 1 else found
