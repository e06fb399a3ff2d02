"""What the Python client costs: throughput of `Client.stream` beside perf_analyzer's on the same server.

    python -m benchmarks.service.client_overhead           # prints and writes results/client_overhead.md and .json
    python -m benchmarks.service.client_overhead --quick   # fewer and shorter rounds; prints only

Both send the same JPEGs (224x224, drawn by demo/scenes.py) in the same number of requests, with as many in flight, and
ask for every output, as perf_analyzer always does. They take turns, and who goes first changes from round to round.
Needs build/demo (`make demo`). A pair of ViT-B/16 shapes with random weights is built into build/base-random once.
"""

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.common.fixtures import BASE, DEMO, build_base
from benchmarks.common.perf_analyzer import Load, PerfAnalyzer, PerfAnalyzerError, get, write_input_data
from clipchoir import Client
from clipchoir.errors import ClipchoirError
from clipchoir_server.triton import Address, ServerError, serving
from demo import scenes

ROOT = Path(__file__).parents[2]

RESULTS = Path(__file__).parents[1] / "results"
CONCURRENCY = 4
CONCURRENCIES = (2, 4, 8)
SIDE, IMAGES = 224, 64
TARGET = 0.95  # of perf_analyzer's throughput, for the ViT-B/16 pair
PACKAGES = ("clipchoir", "tritonclient", "grpcio", "numpy", "nvidia-pytriton", "onnxruntime")
console = Console(highlight=False)


@dataclass(frozen=True)
class Run:
    """One measurement: rows per second, and CPU time of the client per row."""

    throughput: float
    cpu_seconds: float
    cpu_ms_per_image: float


@dataclass
class Comparison:
    """The client beside perf_analyzer; runs of the same index are of the same round."""

    pair: str
    batch_size: int
    concurrency: int
    requests: int  # of every run
    client: list[Run] = field(default_factory=list)
    perf_analyzer: list[Run] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Throughput of the client as a share of perf_analyzer's, by round; of finished rounds."""
        return [
            ours.throughput / other.throughput for ours, other in zip(self.client, self.perf_analyzer, strict=False)
        ]


@dataclass
class Search:
    """The client alone, by requests in flight."""

    pair: str
    batch_size: int
    requests: int
    client: dict[int, list[Run]] = field(default_factory=dict)


@dataclass
class Measured:
    """All of it, as far as it came."""

    comparisons: list[Comparison] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    perf_analyzer: PerfAnalyzer
    images: Sequence[bytes]
    input_data: Path
    measured: Measured

    def compare(self, url: str, pair: str, batch_size: int, rounds: int, seconds: float) -> None:
        """One row of the table."""
        load = Load(url, "zero_shot", batch_size, CONCURRENCY, self.input_data)
        requests = self.perf_analyzer.requests_for(load, seconds)
        row = Comparison(pair, batch_size, CONCURRENCY, requests)
        self.measured.comparisons.append(row)
        with Client(url, concurrency=CONCURRENCY) as client:
            list(client.stream(self.images[:batch_size], batch_size=batch_size, embeddings=True))
            for number in range(rounds):
                for turn in ("client", "perf_analyzer") if number % 2 == 0 else ("perf_analyzer", "client"):
                    if turn == "client":
                        row.client.append(self.stream(client, batch_size, requests))
                    else:
                        row.perf_analyzer.append(self.analyze(load, requests))
                say(
                    f"{pair}, batch {batch_size}, round {number + 1} of {rounds}: client "
                    f"{row.client[-1].throughput:.1f}, perf_analyzer {row.perf_analyzer[-1].throughput:.1f} images/s, "
                    f"ratio {row.ratios()[-1]:.3f}"
                )

    def search(self, url: str, pair: str, batch_size: int, rounds: int, seconds: float) -> None:
        """Which concurrency is best for the client."""
        load = Load(url, "zero_shot", batch_size, max(CONCURRENCIES), self.input_data)
        requests = self.perf_analyzer.requests_for(load, seconds)
        row = Search(pair, batch_size, requests, {concurrency: [] for concurrency in CONCURRENCIES})
        self.measured.searches.append(row)
        for number in range(rounds):
            for concurrency in CONCURRENCIES if number % 2 == 0 else reversed(CONCURRENCIES):
                with Client(url, concurrency=concurrency) as client:
                    list(client.stream(self.images[:batch_size], batch_size=batch_size, embeddings=True))
                    row.client[concurrency].append(self.stream(client, batch_size, requests))
            rates = ", ".join(f"{runs[-1].throughput:.1f} with {each}" for each, runs in row.client.items())
            say(f"{pair}, batch {batch_size}, by requests in flight, round {number + 1} of {rounds}: {rates}")

    def stream(self, client: Client, batch_size: int, requests: int) -> Run:
        """The client: all outputs, read by the caller one result at a time."""
        count = requests * batch_size
        images = islice(cycle(self.images), count)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for result in client.stream(images, batch_size=batch_size, embeddings=True):
            result.raise_for_error()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Run(count / seconds, cpu, 1000 * cpu / count)

    def analyze(self, load: Load, requests: int) -> Run:
        """perf_analyzer, which is a process of its own."""
        found = self.perf_analyzer.measure(load, requests)
        return Run(found.throughput, found.cpu_seconds, 1000 * found.cpu_seconds / (requests * load.batch_size))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds; write nothing.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of client and perf_analyzer, demo pair.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement of the demo pair.")] = 3.0,
    base_rounds: Annotated[int, typer.Option(min=1, help="Of client and perf_analyzer, ViT-B/16 pair.")] = 5,
    base_seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement of the ViT-B/16 pair.")] = 30.0,
) -> None:
    """Measure what the Python client costs beside perf_analyzer, with the demo pair and with a pair of ViT-B/16 shapes.

    Takes about a quarter of an hour on two cores, five minutes with --quick. Each measurement of the ViT-B/16 pair
    takes three requests per place in flight at least, however long these are. Ctrl-C prints what was measured so far.
    """
    if quick:
        rounds, seconds, base_rounds, base_seconds = 3, 2.0, 1, 5.0
    measured = Measured()
    interrupted = False
    try:
        if not DEMO.is_dir():
            raise ServerError(f"{DEMO.relative_to(ROOT)} is missing; build it with: make demo")
        perf_analyzer = get()
        build_base()
        with tempfile.TemporaryDirectory(prefix="client_overhead-") as scratch:
            images = draw()
            data = write_input_data(images, Path(scratch) / "images.json")
            bench = Bench(perf_analyzer, images, data, measured)
            with served(DEMO) as url:
                bench.compare(url, "demo", 8, rounds, seconds)
                bench.compare(url, "demo", 32, rounds, seconds)
                bench.search(url, "demo", 8, rounds, seconds / 2)
            with served(BASE) as url:
                bench.compare(url, "ViT-B/16, twice", 8, base_rounds, base_seconds)
    except KeyboardInterrupt:
        interrupted = True
    except (ServerError, PerfAnalyzerError, ClipchoirError) as error:
        show(measured)
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    show(measured)
    if interrupted:
        say("interrupted: nothing was written")
        raise typer.Exit(130)
    if not quick:
        write(measured, machine(perf_analyzer), command())


@contextmanager
def served(repository: Path) -> Iterator[str]:
    """A real tritonserver; the URL of its gRPC endpoint."""
    say(f"starting tritonserver on {repository.relative_to(ROOT)}")
    with serving(repository, Address.choose()) as triton:
        yield triton.address.grpc


def draw() -> list[bytes]:
    """Scenes as JPEGs of the encoders' size, so that decoding is cheap and sending is not."""
    classes = scenes.CLASSES
    return [scenes.render(classes[seed % len(classes)], seed, (SIDE, SIDE)).jpeg() for seed in range(IMAGES)]


def median(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def tables(measured: Measured) -> str:
    """Markdown, of finished rounds."""
    lines = [
        "| pair | batch | in flight | requests | rounds | client | perf_analyzer | client / perf_analyzer "
        "| lowest to highest | CPU, client | CPU, perf_analyzer |",
        "|---" * 11 + "|",
    ]
    for row in measured.comparisons:
        ratios = row.ratios()
        if not ratios:
            continue
        ours, other = row.client[: len(ratios)], row.perf_analyzer[: len(ratios)]
        rates = [f"{median([run.throughput for run in runs]):.1f}/s" for runs in (ours, other)]
        costs = [
            f"{median([run.cpu_seconds for run in runs]):.2f} s "
            f"({median([run.cpu_ms_per_image for run in runs]):.3f} ms)"
            for runs in (ours, other)
        ]
        lines.append(
            f"| {row.pair} | {row.batch_size} | {row.concurrency} | {row.requests} | {len(ratios)} "
            f"| {' | '.join(rates)} | {median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} "
            f"| {' | '.join(costs)} |"
        )
    for search in measured.searches:
        if not all(search.client.values()):
            continue
        lines += [
            "",
            f"| client alone, {search.pair}, batch {search.batch_size}, in flight | images/s | CPU per image |",
        ]
        lines.append("|---|---|---|")
        lines += [
            f"| {concurrency} | {median([run.throughput for run in runs]):.1f} "
            f"| {median([run.cpu_ms_per_image for run in runs]):.3f} ms |"
            for concurrency, runs in search.client.items()
        ]
    return "\n".join(lines)


def show(measured: Measured) -> None:
    """The tables, where there is something to show."""
    if any(row.ratios() for row in measured.comparisons):
        say(f"\n{tables(measured)}\n")


def say(message: str) -> None:
    """Progress."""
    console.print(message, markup=False, soft_wrap=True)


def machine(perf_analyzer: PerfAnalyzer) -> dict[str, object]:
    """What this ran on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "perf_analyzer": perf_analyzer.version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def command() -> str:
    """As it was given."""
    return " ".join(["python -m benchmarks.service.client_overhead", *sys.argv[1:]])


def write(measured: Measured, machine: dict[str, object], command: str) -> None:
    """Both files."""
    RESULTS.mkdir(exist_ok=True)
    content = {"command": command, "machine": machine, "target": TARGET}
    rows = [{**asdict(row), "ratios": row.ratios(), "ratio": median(row.ratios())} for row in measured.comparisons]
    content |= {"rows": rows, "by_concurrency": [asdict(search) for search in measured.searches]}
    (RESULTS / "client_overhead.json").write_text(json.dumps(content, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in list(machine.items())[2:])
    (RESULTS / "client_overhead.md").write_text(
        "# What the Python client costs\n\n"
        f"    {command}\n\n"
        "`Client.stream` beside perf_analyzer, Triton's load generator in C++: the same JPEGs (224x224), the same\n"
        "number of requests, as many in flight, and every output of `zero_shot`, embeddings too. They take turns on\n"
        "one server, which shares its cores with them. Throughputs and CPU seconds (user and system, of one run; in\n"
        "brackets per image) are medians over the rounds; the ratio is the median of the rounds' ratios. The CPU of\n"
        "perf_analyzer includes its start. *ViT-B/16, twice* is the ensemble `base` with random weights; there the\n"
        f"ratio is to be {TARGET} or more.\n\n"
        f"{tables(measured)}\n\n"
        f"{machine['cores']} cores of {machine['architecture']}; {versions}.\n"
    )
    say(f"written to {RESULTS.relative_to(ROOT)}/client_overhead.md and .json")


if __name__ == "__main__":
    typer.run(main)
