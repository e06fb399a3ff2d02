"""Many clients with mixed requests for minutes, every answer checked, the server's memory watched.

python -m tools.soak --minutes 5        # or: make soak MINUTES=5
"""

import contextlib
import json
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tests.conftest import ROOT
from tests.support.launcher import descendants, launched
from tests.support.traffic import Known, Sender, Tally

IMAGES = 40
WARM_UP = 90.0  # seconds in which memory may grow, see docs/operations.md; at most a third of the run
SAMPLE = 1.0  # seconds between two looks at the memory
MOST_GROWTH, MOST_GROWTH_SHARE = 50.0, 0.05  # MiB; of the memory after the warm-up. The larger of the two is allowed
QUIET = 30.0  # seconds between two lines where nobody watches


@dataclass(frozen=True)
class Memory:
    """MiB of tritonserver and all processes below it, once the caches are warm and at the end; medians."""

    start: float
    end: float
    per_minute: float

    @property
    def is_flat(self) -> bool:
        return self.end - self.start <= max(MOST_GROWTH, MOST_GROWTH_SHARE * self.start)


@dataclass(frozen=True)
class Report:
    """What a run has shown. `memory` is None for one that was too short to tell."""

    seconds: float
    tally: Tally
    memory: Memory | None
    client_cpu_seconds: float
    deaths: list[str]

    def problems(self) -> list[str]:
        """Why the run has failed."""
        tally = self.tally
        found = [f"{tally.mismatches} wrong rows"] if tally.mismatches else []
        if tally.unanswered or tally.answers != tally.requests:
            found.append(f"{tally.requests - tally.answers} requests without an answer")
        if self.memory and not self.memory.is_flat:
            found.append(f"memory is not flat: {self.memory.end - self.memory.start:+.0f} MiB after the warm-up")
        return found + [f"the server died: {line}" for line in self.deaths]

    def render(self) -> str:
        """For people."""
        tally, memory = self.tally, self.memory
        errors = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.errors.items())) or "none"
        allowed = f"at most {MOST_GROWTH:g} MiB or {MOST_GROWTH_SHARE:.0%} is flat"
        lines = [
            f"{self.seconds:.0f} s, client CPU {self.client_cpu_seconds:.0f} s",
            f"requests {tally.requests}, rows {tally.rows}, answers {tally.answers}",
            f"wrong rows {tally.mismatches}, requests without an answer {tally.requests - tally.answers}",
            f"errors on the way: {errors}",
            f"slowest answer {tally.slowest:.2f} s",
            f"memory (PSS of tritonserver and its steps) {memory.start:.0f} MiB after the warm-up, "
            f"{memory.end:.0f} MiB at the end, {memory.per_minute:+.2f} MiB a minute; {allowed}"
            if memory
            else "memory: the run was too short",
            *(f"  {example}" for example in tally.examples),
            *(f"FAILED: {problem}" for problem in self.problems()),
        ]
        return "\n".join(lines)


def proportional_memory(pids: set[int]) -> float:
    """MiB of some processes; what they share is counted once, which it is not in the RSS."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])
    return total / 1024


class MemoryWatch:
    """Looks at the server's memory from time to time."""

    def __init__(self, pids: Callable[[], set[int]]) -> None:
        self._pids = pids
        self._samples: list[tuple[float, float]] = []  # seconds, MiB

    def look(self, seconds: float) -> None:
        if not self._samples or seconds - self._samples[-1][0] >= SAMPLE:
            self._samples.append((seconds, proportional_memory(self._pids())))

    def result(self, seconds: float) -> Memory | None:
        """Of a run of so many seconds."""
        warm = [sample for sample in self._samples if sample[0] >= min(WARM_UP, seconds / 3)]
        if len(warm) < 10:
            return None
        part = len(warm) // 5
        start, end = (statistics.median(mib for _, mib in some) for some in (warm[:part], warm[-part:]))
        slope = statistics.linear_regression(*zip(*warm, strict=True)).slope
        return Memory(start, end, 60 * slope)


def soak(
    address: str,
    known: Known,
    pids: Callable[[], set[int]],
    seconds: float,
    clients: int,
    seed: int,
    progress: Callable[[float, Tally], object] = lambda *_: None,
    deaths: Callable[[], list[str]] = list,
) -> Report:
    """Load a server for some seconds; Ctrl-C ends it early. A death of the server ends it, too.

    Args:
        address: of its gRPC port.
        known: the answers.
        pids: the server's processes.
        seconds: how long to send new requests.
        clients: with a connection and a request in flight each.
        seed: of all that is random.
        progress: is told the seconds so far and what has happened.
        deaths: what the launcher has told of them.
    """
    stop, memory = Event(), MemoryWatch(pids)
    senders = [Sender(address, known, f"{seed} {number}") for number in range(clients)]
    start, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(clients) as threads:
        working = [threads.submit(sender.work, stop) for sender in senders]
        try:
            while (now := time.monotonic() - start) < seconds and not deaths():
                memory.look(now)
                progress(now, sum((sender.tally for sender in senders), Tally()))
                time.sleep(0.25)
        except KeyboardInterrupt:
            print("stopping; requests in flight get their answers", file=sys.stderr)
        took = time.monotonic() - start
        stop.set()
        for each in working:
            each.result()
    tally = sum((sender.tally for sender in senders), Tally())
    return Report(took, tally, memory.result(took), time.process_time() - cpu, deaths())


@contextlib.contextmanager
def shown(seconds: float) -> Iterator[Callable[[float, Tally], object]]:
    """A bar on a terminal, otherwise a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = 0.0

        def tell(now: float, tally: Tally) -> None:
            nonlocal last
            if now - last >= QUIET:
                last = now
                print(f"{now:.0f} s: {_short(tally)}", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("soak", total=seconds, what="")
        yield lambda now, tally: bar.update(task, completed=now, what=_short(tally))


def _short(tally: Tally) -> str:
    errors = sum(tally.errors.values())
    return f"{tally.answers} answers, {tally.mismatches} wrong rows, {errors} errors, slowest {tally.slowest:.2f} s"


def main(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long to send requests.")] = 5.0,
    clients: Annotated[int, typer.Option(min=1, help="Requests in flight at a time.")] = 24,
    seed: Annotated[int, typer.Option(help="Of all that is random in the requests.")] = 0,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report to a file.")] = None,
    repository: Annotated[Path, typer.Option(help="Repository of the demo pair, with text encoders.")] = ROOT
    / "build"
    / "demo",
) -> None:
    """Load the demo pair's server with mixed requests; check every answer, and that memory stays flat.

    Exit code 1: a wrong or a missing answer, a death of the server, or memory that grows.
    """
    with tempfile.TemporaryDirectory(prefix="clipchoir-soak-") as folder:
        with launched(repository, Path(folder)) as server:
            print("computing every answer alone", file=sys.stderr, flush=True)
            known = Known(server.grpc, IMAGES)
            pids = partial(descendants, server.process.pid)
            with shown(60 * minutes) as progress:
                report = soak(server.grpc, known, pids, 60 * minutes, clients, seed, progress, server.deaths)
        if report.problems():
            print(server.log.read_text(), file=sys.stderr)
    print(report.render())
    if as_json:
        as_json.write_text(json.dumps({**asdict(report), "problems": report.problems()}, indent=2) + "\n")
    if report.problems():
        raise typer.Exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    typer.run(main)
