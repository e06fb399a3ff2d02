"""The load generator of benchmarks/peers/run.py: one program for every candidate, over connections that are kept open.

Each connection is a thread of its own, and the requests' bodies are made before: what is left to do for a request is
the same few system calls whatever server answers it.
"""

import http.client
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from benchmarks.common.server_usage import cpu_seconds, memory

TIMEOUT = 120.0  # seconds for an answer
OPEN_LOOP_CONNECTIONS = 48
_MEMORY_INTERVAL = 1.0  # seconds


class Connection(Protocol):
    """One place for requests, used by one thread."""

    def send(self, number: int) -> str:
        """Send a request, the body chosen by a number; returns an empty string, or what kind of error came back."""

    def close(self) -> None:
        """No more requests."""


class HttpConnection:
    """HTTP/1.1, kept alive."""

    def __init__(self, address: str, path: str, requests: Sequence[tuple[bytes, dict[str, str]]]) -> None:
        """
        Args:
            address: host:port.
            path: of the URL.
            requests: bodies and headers, taken in turn.
        """
        self._path, self._requests = path, requests
        self._connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
        self._connection.connect()

    def send(self, number: int) -> str:
        try:
            status, body = self.exchange(number)
        except TimeoutError:
            self._connection.close()
            return f"no answer within {TIMEOUT:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__
        return "" if status == http.HTTPStatus.OK else f"HTTP {status}: {body[:60].decode(errors='replace')}"

    def exchange(self, number: int) -> tuple[int, bytes]:
        """Status and body of the answer."""
        body, headers = self._requests[number % len(self._requests)]
        self._connection.request("POST", self._path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self._connection.close()


Connect = Callable[[int], Connection]
"""Opens a connection; the number is how many there will be."""
Turns = Callable[[float], Iterator[tuple[int, float]]]
"""From the time of the start: a request's number, and when it was due, once it is."""


@dataclass
class Load:
    """What came of some requests.

    Attributes:
        images_per_second: of those answered without an error.
        latencies: seconds, of the same; from the time it was due where there was a schedule.
        errors: requests by kind of error.
        slowest: seconds until the last answer of any kind.
        client_cpu, server_cpu: seconds meanwhile, user and system.
        memory_mib: of the server's processes, the most seen meanwhile.
    """

    images_per_second: float
    latencies: list[float] = field(repr=False)
    errors: dict[str, int]
    slowest: float
    client_cpu: float
    server_cpu: float
    memory_mib: float


@dataclass(frozen=True)
class Target:
    """A server under load."""

    pid: int
    connect: Connect
    batch: int

    def closed_loop(self, in_flight: int, seconds: float) -> Load:
        """A number of requests in flight, until the time is up; those that run are waited for."""

        def turns(number: int, start: float) -> Iterator[tuple[int, float]]:
            while (now := time.perf_counter()) < start + seconds:
                yield number, now
                number += in_flight

        return self._run([partial(turns, number) for number in range(in_flight)])

    def open_loop(self, times: Sequence[float]) -> Load:
        """Requests at times that were fixed before, whether or not earlier ones were answered."""
        due = iter(enumerate(times))
        lock = threading.Lock()

        def turns(start: float) -> Iterator[tuple[int, float]]:
            while True:
                with lock:
                    number, at = next(due, (-1, 0.0))
                if number < 0:
                    return
                time.sleep(max(0.0, start + at - time.perf_counter()))
                yield number, start + at

        return self._run([turns] * min(OPEN_LOOP_CONNECTIONS, len(times)))

    def one_by_one(self, count: int) -> Load:
        """The next when the last one was answered."""
        return self._run([lambda _: ((number, time.perf_counter()) for number in range(count))])

    def _run(self, turns: Sequence[Turns]) -> Load:
        """Each of them has a connection of its own; the clock starts when all are open."""
        found: list[tuple[float, float, str]] = []  # when it ended, seconds, error

        def work(mine: Turns, connection: Connection) -> None:
            for number, due in mine(start):
                error = connection.send(number)
                now = time.perf_counter()
                found.append((now, now - due, error))

        connections = [self.connect(len(turns)) for _ in turns]
        threads = [
            threading.Thread(target=work, args=pair, daemon=True) for pair in zip(turns, connections, strict=True)
        ]
        try:
            with _memory_watched(self.pid) as watched:
                server, client, start = cpu_seconds(self.pid), _own_cpu(), time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                client, server = _own_cpu() - client - watched.cpu_seconds, cpu_seconds(self.pid) - server
        finally:
            for connection in connections:
                connection.close()
        seconds = max((end for end, _, _ in found), default=start) - start
        latencies = [latency for _, latency, error in found if not error]
        return Load(
            images_per_second=len(latencies) * self.batch / seconds if latencies else 0.0,
            latencies=latencies,
            errors=dict(Counter(error for _, _, error in found if error)),
            slowest=max((latency for _, latency, _ in found), default=0.0),
            client_cpu=client,
            server_cpu=server,
            memory_mib=watched.most,
        )


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of independent arrivals, by the second on average `rate`; the same for the same seed."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, size=max(8, round(rate * seconds)))
    return np.cumsum(gaps).tolist()


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class _Watched:
    """The most memory seen so far, MiB, and what looking has cost."""

    most: float
    cpu_seconds: float = 0.0


@contextmanager
def _memory_watched(pid: int) -> Iterator[_Watched]:
    """Looks at a server's memory until the end of the block."""
    done = threading.Event()
    watched = _Watched(memory(pid))

    def watch() -> None:
        while not done.wait(_MEMORY_INTERVAL):
            watched.most = max(watched.most, memory(pid))
            watched.cpu_seconds = time.thread_time()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        done.set()
        thread.join()
        watched.most = max(watched.most, memory(pid))
