"""What integers gain on a CPU, and what they change: a pair in int8 beside the same pair in float32.

    python -m benchmarks.service.precisions            # writes results/precisions.md and .json
    python -m benchmarks.service.precisions --quick    # fewer and shorter rounds; prints only

Both are built by clipchoir-export, served by a tritonserver each, and take turns under perf_analyzer; who has no turn
is stopped. Agreement is that of the served answers for the demo's sample images.
"""

import contextlib
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.common.ab import Run, measure, running, served
from benchmarks.common.fixtures import DEMO, ROOT, build, build_base
from benchmarks.common.in_process import draw
from benchmarks.common.perf_analyzer import Load, PerfAnalyzer, PerfAnalyzerError, get, write_input_data
from benchmarks.service.bench import SMALL, machine
from clipchoir import Classification, Client, ClipchoirError
from clipchoir_server.triton import ServerError, Triton

RESULTS = Path(__file__).parents[1] / "results"
SAMPLES = ROOT / "demo" / "samples"
LOADS = {"demo": ((1, 1), (8, 4), (32, 4)), "base": ((1, 1), (8, 2))}  # images, requests in flight
ROUNDS, QUICK = {"demo": 3, "base": 2}, {"demo": 2, "base": 1}
PRECISIONS = ("fp32", "int8")
console = Console(highlight=False)


@dataclass(frozen=True)
class Agreement:
    """Of the answers of two servers to the same images.

    Attributes:
        images: how many.
        min_cosine: between two embeddings, by encoder.
        same_label: images with the same best class in both.
        right: images whose class is that of their folder, by precision; None for random weights.
    """

    images: int
    min_cosine: dict[str, float]
    same_label: int
    right: dict[str, int] | None


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds; nothing is written.")] = False,
) -> None:
    """Measure int8 against float32 on this machine's CPU."""
    seconds = 1.5 if quick else 4.0
    rows: list[dict[str, Any]] = []
    agreements: dict[str, Agreement] = {}
    try:
        program = get()
        for pair, repositories in _built().items():
            with contextlib.ExitStack() as stack:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipchoir-precisions-")))
                data = write_input_data(draw(SMALL), scratch / "images.json")
                servers = {
                    precision: stack.enter_context(served(repository, scratch / precision, {}))
                    for precision, repository in repositories.items()
                }
                rounds = (QUICK if quick else ROUNDS)[pair]
                for batch, in_flight in LOADS[pair]:
                    runs = _turns(program, servers, batch, in_flight, data, rounds, seconds)
                    rows.append(_row(pair, batch, in_flight, runs))
                    console.print(rows[-1])
                agreements[pair] = _agreement(servers, trained=pair == "demo")
                console.print(agreements[pair])
    except (OSError, ClipchoirError, ServerError, PerfAnalyzerError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    content = {
        "command": "python -m benchmarks.service.precisions",
        "machine": machine(),
        "rows": rows,
        "agreement": {pair: asdict(found) for pair, found in agreements.items()},
    }
    text = report(content)
    print(text)
    if not quick:
        (RESULTS / "precisions.json").write_text(json.dumps(content, indent=1) + "\n")
        (RESULTS / "precisions.md").write_text(text)


def _built() -> dict[str, dict[str, Path]]:
    """By pair and precision."""
    found: dict[str, dict[str, Path]] = {"demo": {}, "base": {}}
    shipped = (ROOT / "export" / "ensembles" / "demo.toml").read_text()
    for precision in PRECISIONS:
        demo, base = (DEMO.with_name(f"{pair}-{precision}") for pair in found)
        with tempfile.TemporaryDirectory(prefix="clipchoir-precisions-") as folder:
            spec = Path(folder) / "demo.toml"
            spec.write_text(shipped.replace("[[encoders]]", f'[[encoders]]\nprecision = "{precision}"'))
            build(spec, demo)
        build_base(base, precision)
        found["demo"][precision], found["base"][precision] = demo, base
    return found


def _turns(
    program: PerfAnalyzer,
    servers: dict[str, Triton],
    batch: int,
    in_flight: int,
    data: Path,
    rounds: int,
    seconds: float,
) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {precision: [] for precision in servers}
    for turn in range(rounds):
        for precision in [*servers][:: -1 if turn % 2 else 1]:
            load = Load(servers[precision].address.grpc, "zero_shot", batch, in_flight, data)
            runs[precision].append(measure(program, servers[precision], load, seconds))
    return runs


def _row(pair: str, batch: int, in_flight: int, runs: dict[str, list[Run]]) -> dict[str, Any]:
    ratios = [
        low.measured.throughput / high.measured.throughput for low, high in zip(runs["int8"], runs["fp32"], strict=True)
    ]
    return {
        "pair": pair,
        "batch": batch,
        "in_flight": in_flight,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        **{
            f"{precision}_{name}": statistics.median(values)
            for precision, measured in runs.items()
            for name, values in {
                "images_per_second": [run.measured.throughput for run in measured],
                "p50_ms": [1000 * run.measured.p50 for run in measured],
                "memory_mib": [run.memory for run in measured],
            }.items()
        },
    }


def _agreement(servers: dict[str, Triton], trained: bool) -> Agreement:
    images = sorted(SAMPLES.glob("*/*.jpg"))
    answers: dict[str, list[Classification]] = {}
    for precision, server in servers.items():
        with running(server), Client(server.address.grpc) as client:
            answers[precision] = list(client.stream(images, embeddings=True))
    high, low = (answers[precision] for precision in PRECISIONS)
    cosines = {
        encoder: min(
            float(np.dot(one.embedding[encoder], other.embedding[encoder]))
            for one, other in zip(high, low, strict=True)
        )
        for encoder in high[0].embedding
    }
    same = sum(one.label == other.label for one, other in zip(high, low, strict=True))
    right = {
        precision: sum(answer.label == path.parent.name for answer, path in zip(found, images, strict=True))
        for precision, found in answers.items()
    }
    return Agreement(len(images), cosines, same, right if trained else None)


def report(content: Mapping[str, Any]) -> str:
    """Markdown of what the JSON has."""
    lines = [
        "# Integers on a CPU",
        "",
        f"    {content['command']}",
        "",
        'The same pair with `precision = "int8"` and in float32, each served by a tritonserver, in turns; medians of',
        "the rounds. Memory is the PSS of the server and its steps.",
        "",
        "| pair | batch | in flight | int8 / float32 | lowest to highest | images/s | p50 | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| {pair} | {batch} | {in_flight} | **{ratio:.2f}** | {lowest:.2f} to {highest:.2f} "
        "| {int8_images_per_second:.1f}, {fp32_images_per_second:.1f} | {int8_p50_ms:.0f}, {fp32_p50_ms:.0f} ms "
        "| {int8_memory_mib:.0f}, {fp32_memory_mib:.0f} MiB |".format(**row)
        for row in content["rows"]
    ]
    lines += ["", "Two figures are int8's and float32's.", "", "Agreement on the demo's sample images:", ""]
    for pair, found in content["agreement"].items():
        cosines = ", ".join(f"{encoder} {cosine:.6f}" for encoder, cosine in found["min_cosine"].items())
        right = found["right"] and "; right are {int8} in int8 and {fp32} in float32".format(**found["right"])
        lines.append(
            f"- {pair}: lowest cosine {cosines}; the same class for {found['same_label']} of {found['images']} images"
            f"{right or ''}."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
