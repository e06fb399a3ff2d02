"""How throughput, latency, CPU time and memory of the service change with what it is asked to do.

    python -m benchmarks.scaling.run                   # about 8 minutes; writes results/scaling.*
    python -m benchmarks.scaling.run --quick           # both ends of each series, about 3 minutes; prints only
    python -m benchmarks.scaling.run --only batch      # one of: instances batch size classes templates encoders

A real tritonserver serves the demo pair, with one thing changed at a time (benchmarks/scaling/cases.py), and
perf_analyzer drives it. The cases of a series take turns with its first one; what is reported is throughput as a ratio
to that of the first case in the same round. Needs build/demo (`make demo`); repositories of one to four encoders are
built into build/scaling, once. Server and load share the cores. Ctrl-C keeps what was measured.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.in_process import draw
from benchmarks.common.perf_analyzer import Load, PerfAnalyzer, PerfAnalyzerError, get, write_input_data
from benchmarks.common.server_usage import Usage, used_since
from benchmarks.scaling.cases import Axis, Case, Series, series_of
from benchmarks.scaling.report import tables
from benchmarks.service.bench import machine
from clipchoir import ClipchoirError
from clipchoir_export.errors import REPORTED
from clipchoir_server.triton import Address, ServerError, Triton, serving

RESULTS = Path(__file__).parents[1] / "results"
IN_FLIGHT = 4  # requests
LEAST = 4  # requests per place in flight of each measurement, however long they take
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: of each case.
        seconds: of each measurement.
        ends: the first and the last case of each series alone.
    """

    rounds: int
    seconds: float
    ends: bool


FULL, QUICK = Plan(2, 1.7, ends=False), Plan(2, 0.8, ends=True)


@dataclass
class Run:
    """One measurement.

    Attributes:
        axis, series, value, label: of the case.
        turn: number of the round; the first case of the series has been measured in the same one.
        images_per_second: of perf_analyzer, while every place in flight is filled.
        p50, p99: latency of all requests, seconds.
        images: how many.
        usage: what the server's processes and steps did meanwhile.
        client_cpu: seconds of perf_analyzer.
    """

    axis: str
    series: str
    value: float
    label: str
    turn: int
    images_per_second: float
    p50: float
    p99: float
    images: int
    usage: Usage
    client_cpu: float


@dataclass
class Runner:
    """Measures series.

    Attributes:
        program: perf_analyzer.
        plan: how long.
        scratch: folder for its input.
        runs: everything measured so far.
    """

    program: PerfAnalyzer
    plan: Plan
    scratch: Path
    runs: list[Run] = field(default_factory=list)
    _turn: int = 0
    _requests: dict[Case, int] = field(default_factory=dict)

    def steps(self, series: Series) -> int:
        """For the progress bar."""
        first, *others = series.cases
        elsewhere = sum(case.repository != first.repository for case in others)
        here = len(series.cases) - elsewhere
        return self.plan.rounds * ((here if here > 1 else 0) + 2 * elsewhere)

    def run(self, series: Series) -> Iterator[str]:
        """Measure; yields what was just done.

        Cases of one repository share a server, which is new, so that its memory in the first round is of no larger
        case. Other repositories are served one after the other, beside the first one.
        """
        first, *others = series.cases
        with serving(first.repository, Address.choose()) as home:
            here = [case for case in others if case.repository == first.repository]
            if here:
                yield from self._rounds(series, dict.fromkeys([first, *here], home))
            for case in others:
                if case not in here:
                    with serving(case.repository, Address.choose()) as away:
                        yield from self._rounds(series, {first: home, case: away})

    def _rounds(self, series: Series, servers: Mapping[Case, Triton]) -> Iterator[str]:
        """The order is turned around from round to round."""
        for number in range(self.plan.rounds):
            self._turn += 1
            for case in list(servers)[:: 1 if number % 2 == 0 else -1]:
                run = self._measure(series, case, servers[case])
                self.runs.append(run)
                name = " ".join(part for part in (series.axis.value, series.name, case.label) if part)
                yield f"{name}: {run.images_per_second:.1f} images/s, p99 {1000 * run.p99:.0f} ms"

    def _measure(self, series: Series, case: Case, server: Triton) -> Run:
        load = self._load(case, server)
        if case not in self._requests:
            self._requests[case] = self._enough(load)
        requests = self._requests[case]
        with used_since(server.process.pid, server.address.grpc) as usage:
            found = self.program.measure(load, requests)
        return Run(
            series.axis.value,
            series.name,
            case.value,
            case.label,
            self._turn,
            found.steady,
            found.p50,
            found.p99,
            requests * case.batch,
            usage(),
            found.cpu_seconds,
        )

    def _enough(self, load: Load) -> int:
        """How many requests take about as long as a measurement should."""
        self.program.measure(load, LEAST * IN_FLIGHT)  # the first ones of a server are slow
        answers = self.program.measure(load, LEAST * IN_FLIGHT).steady / load.batch_size
        return IN_FLIGHT * max(LEAST, round(answers * self.plan.seconds / IN_FLIGHT))

    def _load(self, case: Case, server: Triton) -> Load:
        data = self.scratch / f"{case.size[0]}x{case.size[1]}-{case.images}.json"
        if not data.exists():
            write_input_data(draw(case.size, case.images), data)
        if case.label_set:
            case.label_set.put_into(case.repository)
        name = case.label_set.name if case.label_set else ""
        return Load(server.address.grpc, case.model, case.batch, IN_FLIGHT, data, label_set=name)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Both ends of each series; write nothing.")] = False,
    only: Annotated[Axis | None, typer.Option(help="Measure this alone; written only with --out.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write, with .json and .md.  [default: results/scaling]"),
    ] = None,
) -> None:
    """Measure the service with perf_analyzer, one thing changed at a time."""
    runs: list[Run] = []
    code = 0
    try:
        program = get()
        with tempfile.TemporaryDirectory(prefix="clipchoir-scaling-") as scratch:
            runner = Runner(program, QUICK if quick else FULL, Path(scratch), runs)
            axes = [only] if only else list(Axis)
            series = [each for axis in axes for each in series_of(axis, Path(scratch), runner.plan.ends)]
            with Progress(console=console, transient=True) as bar:
                task = bar.add_task("scaling", total=sum(map(runner.steps, series)))
                for each in series:
                    for what in runner.run(each):
                        console.print(what, markup=False)
                        bar.advance(task)
    except KeyboardInterrupt:
        console.print("interrupted; this was measured until then", style="yellow")
        code = 130
    except (ServerError, PerfAnalyzerError, ClipchoirError, *REPORTED) as error:
        console.print(str(error), style="red", markup=False)
        code = 1
    content = {
        "command": " ".join(["python -m benchmarks.scaling.run", *sys.argv[1:]]),
        "machine": machine(),
        "in_flight": IN_FLIGHT,
        "runs": [asdict(run) for run in runs],
    }
    text = tables(content)
    print(text)
    target = out or (None if only else RESULTS / "scaling")
    if runs and target and not quick:
        target.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        target.with_suffix(".md").write_text(text + "\n")
    if code:
        raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
