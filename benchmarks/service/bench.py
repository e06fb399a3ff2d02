"""Throughput and latency of the whole service, driven by perf_analyzer, beside what the hardware allows.

    make bench                                     # a quarter of an hour; writes results/bench.*
    make bench QUICK=1                             # under ten minutes; prints only
    python -m benchmarks.service.bench --compare OLD.json  # ratios to an earlier run

For each repository: perf_analyzer sends JPEGs in batches, with so many requests in flight or at random times (Poisson),
and in the same minutes the same encoders run in this process without a server (benchmarks/common/in_process.py).
Server and load share the cores. Ctrl-C keeps what was measured.
"""

import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.fixtures import BASE, DEMO, build_base
from benchmarks.common.in_process import CORES, InProcess, Way, best, draw, gflop_per_image, matmul_peak
from benchmarks.common.perf_analyzer import Load, PerfAnalyzer, PerfAnalyzerError, get, write_input_data
from benchmarks.common.server_usage import Usage, used_since
from benchmarks.service.report import ReportError, tables, write_plots
from clipchoir import ClipchoirError
from clipchoir_server.triton import Address, ServerError, Triton, serving
from clipchoir_steps.atomic import write_text

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results"
SMALL, LARGE = (224, 224), (1600, 1200)
PACKAGES = ("clipchoir", "nvidia-pytriton", "onnxruntime", "numpy", "pillow")
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """What to measure of a repository.

    Attributes:
        sizes: of the images, (width, height).
        batches: sizes of requests.
        in_flight: requests.
        rates: of the Poisson load, as shares of the throughput at saturation.
        rounds: of everything.
        seconds: of each measurement.
        single: images for the latency on an idle server.
    """

    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    in_flight: tuple[int, ...]
    rates: tuple[float, ...]
    rounds: int
    seconds: float
    single: int


PLANS = {
    "demo": Plan((SMALL, LARGE), (1, 8, 32), (1, 4, 8), (0.5, 0.7, 0.9), 3, 3.0, 60),
    "base": Plan((SMALL,), (8,), (2, 4), (), 3, 16.0, 20),
}
QUICK = {
    "demo": Plan((SMALL,), (32,), (4, 8), (0.7,), 3, 3.0, 40),
    "base": Plan((SMALL,), (8,), (4,), (), 2, 12.0, 8),
}


@dataclass
class Point:
    """One measurement of the server.

    Attributes:
        repository: its name.
        size: of the images.
        batch: rows per request.
        in_flight: requests; 0 for a Poisson load.
        rate: requests per second that were offered; 0 for a fixed number in flight.
        images_per_second, p50, p90, p99: of perf_analyzer; seconds.
        usage: what the server's processes and steps did meanwhile.
        client_cpu: seconds of perf_analyzer.
    """

    repository: str
    size: tuple[int, int]
    batch: int
    in_flight: int
    rate: float
    images_per_second: float
    p50: float
    p90: float
    p99: float
    usage: Usage
    client_cpu: float


@dataclass
class Limit:
    """One measurement without a server, with the best way of using the cores."""

    repository: str
    size: tuple[int, int]
    batch: int
    images_per_second: float
    way: str


@dataclass
class Single:
    """Median seconds of single images, one after the other, on an idle server and in process."""

    repository: str
    served: float
    in_process: float


@dataclass
class Bench:
    """Everything measured so far."""

    points: list[Point] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    singles: list[Single] = field(default_factory=list)
    gflop: dict[str, float] = field(default_factory=dict)
    matmul_gflops: float = 0.0
    matmul_by: str = ""


@dataclass(frozen=True)
class Runner:
    """Measures one repository."""

    name: str
    repository: Path
    plan: Plan
    program: PerfAnalyzer
    bench: Bench

    def steps(self) -> int:
        """For the progress bar."""
        per_size = len(self.plan.batches) * (1 + len(self.plan.in_flight) * self.plan.rounds) + len(self.plan.rates)
        return len(self.plan.sizes) * per_size + 1

    def run(self) -> Iterator[str]:
        """Measure; yields what was just done."""
        self.bench.gflop[self.name] = gflop_per_image(self.repository)
        for size in self.plan.sizes:
            images = draw(size)
            ways = {batch: self._limit(images, batch) for batch in self.plan.batches}
            yield from (f"{self.name}: in-process limit at batch {batch}" for batch in ways)
            with tempfile.TemporaryDirectory(prefix="clipchoir-bench-") as scratch:
                data = write_input_data(images, Path(scratch) / "images.json")
                with serving(self.repository, Address.choose()) as server:
                    yield from self._sweep(server, data, size, images, ways)
                    if size == self.plan.sizes[0]:
                        yield self._single(server, data, images, ways[min(ways)])

    def _limit(self, images: list[bytes], batch: int) -> Way:
        seconds = self.plan.seconds / 2
        found = best(self.repository, images, batch, seconds, 1, quick=True)
        return next(iter(found))

    def _sweep(
        self, server: Triton, data: Path, size: tuple[int, int], images: list[bytes], ways: dict[int, Way]
    ) -> Iterator[str]:
        for batch in self.plan.batches:
            in_process = InProcess(self.repository, ways[batch])
            loads = {each: Load(server.address.grpc, "zero_shot", batch, each, data) for each in self.plan.in_flight}
            counts = {each: self.program.requests_for(load, self.plan.seconds) for each, load in loads.items()}
            for _ in range(self.plan.rounds):
                limit = in_process.throughput(images, batch, self.plan.seconds)
                self.bench.limits.append(Limit(self.name, size, batch, limit, str(ways[batch])))
                for each, load in loads.items():
                    point = self._point(server, load, counts[each], size)
                    yield f"{self.name} {size[0]}x{size[1]}, batch {batch}, {each} in flight: " + (
                        f"{point.images_per_second:.1f} images/s, {point.images_per_second / limit:.2f} of the limit"
                    )
        batch = self.plan.batches[-1]
        saturation = max(point.images_per_second for point in self.bench.points if self._is_of(point, size, batch))
        for share in self.plan.rates:
            rate = share * saturation / batch
            load = Load(server.address.grpc, "zero_shot", batch, 0, data, rate)
            point = self._point(server, load, max(20, round(rate * 3 * self.plan.seconds)), size)
            yield f"{self.name}, Poisson, {rate:.2f} requests/s: p99 {1000 * point.p99:.0f} ms"

    def _is_of(self, point: Point, size: tuple[int, int], batch: int) -> bool:
        return (point.repository, point.size, point.batch) == (self.name, size, batch) and point.in_flight > 0

    def _point(self, server: Triton, load: Load, requests: int, size: tuple[int, int]) -> Point:
        with used_since(server.process.pid, server.address.grpc) as usage:
            found = self.program.measure(load, requests)
        point = Point(
            self.name,
            size,
            load.batch_size,
            load.concurrency,
            load.rate,
            found.throughput,
            found.p50,
            found.p90,
            found.p99,
            usage(),
            found.cpu_seconds,
        )
        self.bench.points.append(point)
        return point

    def _single(self, server: Triton, data: Path, images: list[bytes], way: Way) -> str:
        """The served images and those in process take turns."""
        alone = Way(1, CORES, spinning=False, side_by_side=False)
        runs = [
            InProcess(self.repository, each)
            for each in {way, alone, Way(1, CORES, True, False), Way(1, 1, False, True)}
        ]
        load = Load(server.address.grpc, "zero_shot", 1, 1, data)
        served, in_process = [], []
        for _ in range(self.plan.rounds):
            count = max(2, self.plan.single // self.plan.rounds)
            served.append(self.program.measure(load, count).p50)
            times = [sorted(each.latencies(images[0], count))[count // 2] for each in runs]
            in_process.append(min(times))
        middle = len(served) // 2
        found = Single(self.name, sorted(served)[middle], sorted(in_process)[middle])
        self.bench.singles.append(found)
        return f"{self.name}, single image: {1000 * found.served:.1f} ms, in process {1000 * found.in_process:.1f} ms"


def main(
    repository: Annotated[
        Path | None, typer.Option(help="Measure this one alone, as large encoders are. Default: demo and base pair.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One batch size of each pair; write nothing.")] = False,
    out: Annotated[Path, typer.Option(help="Where to write, with .json, .md and plots in .png.")] = RESULTS / "bench",
    compare: Annotated[Path | None, typer.Option(help="Print ratios to this earlier JSON.", metavar="OLD.json")] = None,
) -> None:
    """Measure the service with perf_analyzer, beside the same encoders without a server."""
    plans = QUICK if quick else PLANS
    bench, code = Bench(), 0
    try:
        program = get()
        wanted = {"demo": DEMO, "base": BASE} if repository is None else {"base": repository}
        if BASE in wanted.values():
            build_base()
        for path in wanted.values():
            if not path.is_dir():
                raise ServerError(f"{path} is missing; build it with: make demo")
        bench.matmul_by, peak = matmul_peak()
        bench.matmul_gflops = peak / 1e9
        runners = [Runner(name, path, plans[name], program, bench) for name, path in wanted.items()]
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("bench", total=sum(runner.steps() for runner in runners))
            for runner in runners:
                for what in runner.run():
                    console.print(what, markup=False)
                    bar.advance(task)
    except KeyboardInterrupt:
        console.print("interrupted; this was measured until then", style="yellow")
        code = 130
    except (ServerError, PerfAnalyzerError, ClipchoirError) as error:
        console.print(str(error), style="red", markup=False)
        code = 1
    content = {
        "command": " ".join(["python -m benchmarks.service.bench", *sys.argv[1:]]),
        "machine": machine(),
        **asdict(bench),
    }
    publish = bool(bench.points) and not quick
    if publish:
        write_text(out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    try:
        text = tables(content, json.loads(compare.read_text()) if compare else None)
    except ReportError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    print(text)
    if publish:
        write_text(out.with_suffix(".md"), text + "\n")
        write_plots(content, out)
    if code:
        raise typer.Exit(code)


def machine() -> dict[str, Any]:
    """What this ran on."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **versions,
    }


if __name__ == "__main__":
    typer.run(main)
