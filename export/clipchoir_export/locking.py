"""One process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from clipchoir_export.errors import RepositoryError


@contextlib.contextmanager
def exclusively(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock, which ends with the process at the latest.

    Args:
        lock: a file for it.
        what: is being done, for the message.

    Raises:
        RepositoryError: another process has it.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise RepositoryError(f"another {what} is running; wait for it, or stop it") from error
    try:
        yield
    finally:
        held.release()
