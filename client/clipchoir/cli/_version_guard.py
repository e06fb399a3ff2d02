"""Makes sure that all rows of a run are by one version of the repository."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clipchoir._client import Client
from clipchoir._protocol import Service
from clipchoir.errors import ClipchoirError

_EVERY = 1.0  # seconds between two looks

T = TypeVar("T")


class RepositoryChangedError(ClipchoirError):
    """A server has another version of the repository than the run began with.

    Attributes:
        certain: number of the rows that are of the first version for certain.
    """

    def __init__(self, message: str, certain: int) -> None:
        super().__init__(message)
        self.certain = certain


def watched(client: Client, rows: Iterable[T]) -> Iterator[T]:
    """Hand on the rows of a run, and ask every server that answers once a second, and at the end, which version it has.

    Raises:
        RepositoryChangedError: another one. Rows since the last look may be of either.
    """
    first = client.service
    certain = number = 0
    pool = ThreadPoolExecutor(1, thread_name_prefix="watch")  # a server that hangs holds nobody up
    look: Future[dict[str, Service]] | None = None
    looked_at, next_look = 0, time.monotonic()
    try:
        for number, row in enumerate(rows, 1):
            yield row
            if look is None and time.monotonic() >= next_look:
                looked_at, look = number, pool.submit(client.services)
            elif look is not None and look.done():
                _check(first, look.result(), certain)
                certain, look, next_look = looked_at, None, time.monotonic() + _EVERY
        _check(first, client.services(), certain)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _check(first: Service, now: dict[str, Service], certain: int) -> None:
    for url, service in now.items():
        if service != first:
            raise RepositoryChangedError(
                f"{url} serves version {service.version} of the repository, and the run began with {first.version}; "
                "give servers of one version",
                certain,
            )
