"""Several servers: which of them takes the next request, and how many each has at a time."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipchoir._connection import Connection, ConnectionOptions
from clipchoir.errors import ClientClosedError, OverloadedError, ServerFailedError, TimedOutError, UnreachableError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds that a server without an answer is left alone where there are others
_LOOK_AGAIN = 1.0  # seconds; a pause may have ended


@dataclass
class _Endpoint:
    connection: Connection
    limit: float  # requests in flight: less after a rejection, slowly more again
    in_flight: int = 0
    pause: float = 0.0  # seconds; 0: the last answer was one
    up_at: float = 0.0
    shrunk_at: float = 0.0
    paused_at: float = 0.0

    def is_up(self) -> bool:
        return time.monotonic() >= self.up_at


class Balancer:
    """Connections to servers of the same repository. Safe to use from several threads.

    The number of requests in flight at each follows its back-pressure as TCP's congestion window does: halved when it
    rejects one, and one more for every window of answers (additive increase, multiplicative decrease).
    """

    def __init__(self, urls: Sequence[str], options: ConnectionOptions) -> None:
        """
        Args:
            urls: host:port of each.
            options: of the connections.

        Raises:
            ValueError, OSError: see `Connection`; or there is no URL.
        """
        if not urls:
            raise ValueError("a client needs at least one URL")
        self._most = options.concurrency
        self._endpoints = [_Endpoint(Connection(url, options), self._most) for url in urls]
        self._changed = threading.Condition()
        self._closed = False

    def close(self) -> None:
        """Close the connections; whoever waits for a turn gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for endpoint in self._endpoints:
            endpoint.connection.close()

    @property
    def connections(self) -> list[Connection]:
        return [endpoint.connection for endpoint in self._endpoints]

    def in_use(self) -> list[Connection]:
        """To servers that are not left alone at present; to all if there are none."""
        with self._changed:
            up = [endpoint.connection for endpoint in self._endpoints if endpoint.is_up()]
        return up or self.connections

    def others_are_up(self) -> bool:
        """Whether a request that has just failed may go elsewhere at once."""
        with self._changed:
            return any(endpoint.is_up() for endpoint in self._endpoints)

    def limits(self) -> dict[str, int]:
        """Requests in flight that each server is given at present."""
        with self._changed:
            return {endpoint.connection.url: int(endpoint.limit) for endpoint in self._endpoints}

    @contextlib.contextmanager
    def turn(self) -> Iterator[Connection]:
        """A connection for one request, as soon as a server may have one more.

        Raises:
            ClientClosedError: the client was closed.
        """
        with self._changed:
            while not self._closed and (endpoint := self._free()) is None:
                self._changed.wait(_LOOK_AGAIN)
            if self._closed:
                raise ClientClosedError("the client was closed")
            assert endpoint is not None  # noqa: S101  the loop has ended
            endpoint.in_flight += 1
        began = time.monotonic()
        try:
            yield endpoint.connection
        except OverloadedError:
            self._shrink(endpoint, began)
            raise
        except (UnreachableError, TimedOutError, ServerFailedError):
            self._leave_alone(endpoint, began)
            raise
        else:
            with self._changed:
                endpoint.pause = endpoint.up_at = 0.0
                endpoint.limit = min(self._most, endpoint.limit + 1 / endpoint.limit)
        finally:
            with self._changed:
                endpoint.in_flight -= 1
                self._changed.notify_all()

    def _free(self) -> _Endpoint | None:
        """The server with the most room; one that is down only if all are, and then the one that failed first."""
        up = [endpoint for endpoint in self._endpoints if endpoint.is_up()]
        candidates = up or [min(self._endpoints, key=lambda each: each.up_at)]
        best = min(candidates, key=lambda each: each.in_flight / each.limit)
        return best if best.in_flight < max(1, int(best.limit)) else None

    def _leave_alone(self, endpoint: _Endpoint, began: float) -> None:
        """Once for all requests that were in flight together."""
        with self._changed:
            if began >= endpoint.paused_at:
                endpoint.pause = min(_LONGEST_PAUSE, 2 * endpoint.pause or _FIRST_PAUSE)
                endpoint.paused_at = time.monotonic()
                endpoint.up_at = endpoint.paused_at + endpoint.pause

    def _shrink(self, endpoint: _Endpoint, began: float) -> None:
        """Once for all requests that were in flight together."""
        with self._changed:
            if began >= endpoint.shrunk_at:
                endpoint.limit = max(1.0, endpoint.limit / 2)
                endpoint.shrunk_at = time.monotonic()
