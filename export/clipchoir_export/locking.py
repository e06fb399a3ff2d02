"""One process at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from clipchoir_export.errors import RepositoryError


@contextlib.contextmanager
def exclusively(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock, which ends with the process at the latest.

    Args:
        lock: a file for it; it is made, and stays.
        what: is being done, for the message.

    Raises:
        RepositoryError: another process has it.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RepositoryError(f"another {what} is running; wait for it, or stop it") from error
        yield
