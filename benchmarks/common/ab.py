"""Variants of a repository's configs and of the server's environment, side by side.

    python -m benchmarks.common.ab                              # those of benchmarks/common/ab.json, on build/demo
    python -m benchmarks.common.ab MINE.json --load 8x4 --load 1x1

The JSON has for each variant, by its name, what is replaced in which model's config, and what is set in the
environment:

    {"as it is": {}, "two instances": {"configs": {"metaclip": [["count: 1", "count: 2"]]}, "environment": {"A": "1"}}}

All servers are up; who has no turn is stopped (SIGSTOP). They take turns, and ratios are to the first variant in the
same round. Server and load share the cores.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from benchmarks.common.fixtures import DEMO
from benchmarks.common.in_process import draw
from benchmarks.common.perf_analyzer import Load, Measurement, PerfAnalyzer, PerfAnalyzerError, get, write_input_data
from benchmarks.common.server_usage import signal_tree, used_since
from benchmarks.scaling.cases import link_or_copy
from clipchoir_server.triton import Address, ServerError, Triton, serving

STALL = 0.35  # seconds beyond the median
VARIANTS = Path(__file__).with_suffix(".json")
console = Console(stderr=True, highlight=False)


@dataclass
class Run:
    """One measurement of one variant; CPU in seconds per image, memory in MiB."""

    measured: Measurement
    cpu: float
    memory: float


def main(
    variants: Annotated[Path, typer.Argument(help="JSON; see the top of this file.")] = VARIANTS,
    repository: Annotated[Path, typer.Option(help="Built by clipchoir-export.")] = DEMO,
    load: Annotated[
        list[str] | None, typer.Option(help="Rows per request x requests in flight.", metavar="ROWSxREQUESTS")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 2.0,
) -> None:
    """Measure variants of configs and environment against each other."""
    loads = [_load(text) for text in load or ["32x4", "8x4", "1x1"]]
    try:
        wanted = json.loads(variants.read_text())
        program = get()
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipchoir-ab-")))
            data = write_input_data(draw(), scratch / "images.json")
            servers = {
                name: stack.enter_context(served(repository, scratch / str(number), variant))
                for number, (name, variant) in enumerate(wanted.items())
            }
            for batch, in_flight in loads:
                found: dict[str, list[Run]] = {name: [] for name in servers}
                turns = [name for turn in range(rounds) for name in [*servers][:: -1 if turn % 2 else 1]]
                for name in track(turns, f"{batch} rows, {in_flight} in flight", console=console, transient=True):
                    url = servers[name].address.grpc
                    found[name].append(
                        measure(program, servers[name], Load(url, "zero_shot", batch, in_flight, data), seconds)
                    )
                _print(batch, in_flight, found)
    except (OSError, ValueError, ServerError, PerfAnalyzerError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


def _load(text: str) -> tuple[int, int]:
    batch, _, in_flight = text.partition("x")
    if not (batch.isdecimal() and in_flight.isdecimal() and int(batch) and int(in_flight)):
        raise typer.BadParameter(f'"{text}" is no load; it must be like 32x4', param_hint="--load")
    return int(batch), int(in_flight)


@contextmanager
def served(repository: Path, target: Path, variant: dict[str, dict]) -> Iterator[Triton]:
    """A stopped server on a copy of the repository; the large files are links.

    Raises:
        ValueError: what is to be replaced is not in the config.
    """
    shutil.copytree(repository.resolve(), target, copy_function=link_or_copy)
    for model, replacements in variant.get("configs", {}).items():
        config = target / model / "config.pbtxt"
        text = config.read_text()
        for old, new in replacements:
            if old not in text:
                raise ValueError(f"the config of {model} has no {old!r}")
            text = text.replace(old, new)
        config.unlink()  # a link to the repository's own
        config.write_text(text)
    with contextlib.ExitStack() as stack:
        with _environment(variant.get("environment", {})):
            server = stack.enter_context(serving(target, Address.choose(), on_line=lambda _: None))
        signal_tree(server.process.pid, signal.SIGSTOP)
        stack.callback(signal_tree, server.process.pid, signal.SIGCONT)
        yield server


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set for what starts meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def running(server: Triton) -> Iterator[None]:
    """A turn of a stopped server."""
    signal_tree(server.process.pid, signal.SIGCONT)
    try:
        yield
    finally:
        signal_tree(server.process.pid, signal.SIGSTOP)


def measure(program: PerfAnalyzer, server: Triton, load: Load, seconds: float) -> Run:
    """One turn of a stopped server: so many seconds of a load, after a warm-up."""
    with running(server):
        program.measure(load, max(4, 2 * load.concurrency))
        requests = program.requests_for(load, seconds)
        with used_since(server.process.pid, load.url) as usage:
            measured = program.measure(load, requests)
    return Run(measured, usage().cpu_seconds / (requests * load.batch_size), usage().memory_mib)


def _print(batch: int, in_flight: int, found: dict[str, list[Run]]) -> None:
    first = next(iter(found.values()))
    print(f"\n{batch} rows per request, {in_flight} in flight")
    for name, runs in found.items():
        ratio = statistics.median(
            one.measured.throughput / other.measured.throughput for one, other in zip(runs, first, strict=True)
        )
        p50, p99 = (statistics.median(getattr(run.measured, each) for run in runs) for each in ("p50", "p99"))
        stalled = sum(run.measured.p99 > run.measured.p50 + STALL for run in runs)
        print(
            f"{name:32} {statistics.median(run.measured.throughput for run in runs):7.1f} images/s, {ratio:.2f} of the "
            f"first; p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms, CPU "
            f"{1000 * statistics.median(run.cpu for run in runs):.2f} ms an image, {runs[-1].memory:.0f} MiB"
            + (f"; a stall in {stalled} of {len(runs)} rounds" if stalled else "")
        )


if __name__ == "__main__":
    typer.run(main)
