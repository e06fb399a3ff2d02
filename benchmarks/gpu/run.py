"""The pair on one graphics card: images per second, and the share of the card's arithmetic that they are.

    python -m benchmarks.gpu.run --prepare             # writes and exports the weights; needs no GPU
    python -m benchmarks.gpu.run                       # MetaCLIP bigG and EVA-CLIP-18B; writes results/gpu.json and .md
    python -m benchmarks.gpu.run --shapes scenes-8b    # with EVA-CLIP-8B
    python -m benchmarks.gpu.run --shapes tiny         # tries everything out; without a GPU it runs on the CPU

Weights are random, of the true shapes, and exported with clipchoir-export. Each encoder runs alone in ONNX Runtime,
with the options that it is served with, and in PyTorch, eager and compiled, in processes of their own that take turns;
then the pair is served by the embedded Triton. Ctrl-C keeps what was measured; the same command goes on from there.
"""

import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress, TaskID

from benchmarks.gpu.card import Card, CardError, find_card
from benchmarks.gpu.models import Model, ModelsError, Pair, Shapes, console, pair
from benchmarks.gpu.report import markdown, record
from benchmarks.gpu.results import Bench, Rate
from benchmarks.gpu.runs import Run, RunError
from benchmarks.gpu.served import measure_served, test_pixels
from clipchoir import ClipchoirError
from clipchoir_export.errors import REPORTED
from clipchoir_server.triton import ServerError

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results" / "gpu"
ONNX, GRAPHS, EAGER, COMPILED = "ONNX Runtime", "ONNX Runtime, CUDA graphs", "PyTorch", "torch.compile"
WAYS = {ONNX: {"onnxruntime": ONNX}, GRAPHS: {"onnxruntime": GRAPHS}, EAGER: {"eager": EAGER, "compiled": COMPILED}}
"""What one process measures: name of the way in the process, and for people."""
BATCHES = (8, 32, 64)
PACKAGES = ("torch", "timm", "open_clip_torch", "onnxruntime-gpu", "onnxruntime", "nvidia-pytriton", "numpy")
_CUDA = "CUDAExecutionProvider"


class Half(str, Enum):
    """Types that a card multiplies fast."""

    FP16 = "fp16"
    BF16 = "bf16"


class Dialect(str, Enum):
    """Of ONNX."""

    PORTABLE = "portable"
    CURRENT = "current"


@dataclass(frozen=True)
class Runner:
    """Measures the encoders of a pair.

    Attributes:
        pair: built.
        card: None: the CPU.
        bench: where the figures go.
        batches: sizes.
        rounds: of everything.
        seconds: of each measurement.
        kinds: keys of `WAYS`.
        work: folder for logs and caches.
    """

    pair: Pair
    card: Card | None
    bench: Bench
    batches: Sequence[int]
    rounds: int
    seconds: float
    kinds: Sequence[str]
    work: Path

    def steps(self) -> int:
        """For the progress bar."""
        ways = sum(len(WAYS[kind]) for kind in self.kinds)
        return len(self.pair.models) * ways * len(self.batches) * self.rounds

    def run(self, model: Model, bar: Progress, task: TaskID) -> None:
        """All rounds of one encoder. Where the card holds every process at once, none is loaded twice."""
        failed: set[tuple[str, int]] = set()  # way, batch
        keep = self.card is None or len(self.kinds) * model.card_bytes(max(self.batches)) <= self.card.memory
        with ExitStack() as stack:
            running: dict[str, Run] = {}
            for number in range(self.rounds):
                for kind in self.kinds if number % 2 == 0 else reversed(self.kinds):
                    self._turn(model, kind, number, running, stack, failed, bar, task)
                    if not keep and kind in running:
                        running.pop(kind).stop()
                    self.bench.save(self.pair.folder)

    def _turn(
        self,
        model: Model,
        kind: str,
        number: int,
        running: dict[str, Run],
        stack: ExitStack,
        failed: set[tuple[str, int]],
        bar: Progress,
        task: TaskID,
    ) -> None:
        """One process, all batches."""
        todo = [(batch, inner, way) for batch in self.batches for inner, way in WAYS[kind].items()]
        left = [
            (batch, inner, way)
            for batch, inner, way in todo
            if (way, batch) not in failed and not self.bench.has(model.name, way, batch, number)
        ]
        bar.advance(task, len(todo) - len(left))
        if not left:
            return
        before = self.card.used() if self.card else 0
        try:
            if kind not in running:
                bar.update(task, description=f"{model.name}: loading into {kind}")
                running[kind] = stack.enter_context(self._load(model, kind))
                self.bench.note(model.name, kind, running[kind].info)
            if kind == EAGER:
                self.bench.peaks.setdefault(model.precision, []).append(running[kind].peak(self.seconds))
        except RunError as error:
            self._fail(f"{model.name}, {kind}", error)
            failed |= {(way, batch) for batch, _, way in left}
            bar.advance(task, len(left))
            return
        for batch, inner, way in left:
            bar.update(task, description=f"{model.name}: {way}, batch {batch}, round {number + 1} of {self.rounds}")
            try:
                if way not in self.bench.embedded(model.name):
                    self.bench.add_embeddings(model.name, way, np.array(running[kind].embed(inner, min(self.batches))))
                rate = running[kind].rate(inner, batch, self.seconds)
            except RunError as error:
                self._fail(f"{model.name}, {way}, batch {batch}", error)
                failed.add((way, batch))
            else:
                self.bench.rates.append(Rate(model.name, way, batch, number, rate))
                console.print(f"{model.name}, {way}, batch {batch}: {rate:.1f} images/s", markup=False)
            bar.advance(task)
        if self.card:
            self.bench.add_memory(model.name, kind, self.card.used() - before)

    def _load(self, model: Model, kind: str) -> Run:
        settings: dict[str, Any] = {
            "runtime": "torch" if kind == EAGER else "onnxruntime",
            "device": "cuda" if self.card else "cpu",
            "pixels": str(self.work / "pixels.npy"),
            "model": str(model.version(self.pair.repository).resolve()),
            "graphs": kind == GRAPHS,
            "spec": str(self.pair.spec.resolve()),
            "encoder": model.name,
        }
        return Run(settings, self.work / "gpu.log", self.work)

    def _fail(self, what: str, error: Exception) -> None:
        self.bench.failures[what] = str(error)
        console.print(f"{what}: {error}", style="yellow", markup=False)


def main(
    shapes: Annotated[Shapes, typer.Option(help="Whose sizes the pair has.")] = Shapes.SCENES,
    precision: Annotated[Half, typer.Option(help="Of EVA-CLIP; MetaCLIP is fp16. On a CPU both are fp32.")] = Half.FP16,
    dialect: Annotated[Dialect, typer.Option(help="Of ONNX; `current` has attention as one operator.")] = (
        Dialect.PORTABLE
    ),
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=64, help="Images per batch; may be given again. Default: 8, 32 and 64.", show_default=False
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of everything; the figures are medians.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.05, help="Of each measurement.")] = 4.0,
    graphs: Annotated[bool, typer.Option(help="Measure ONNX Runtime with CUDA graphs as well.")] = True,
    link_weights: Annotated[
        bool, typer.Option("--link-weights", help="Export with links to the checkpoint: half the disk.")
    ] = False,
    work: Annotated[Path, typer.Option(help="Where weights and unfinished measurements are kept.")] = ROOT
    / "build"
    / "gpu",
    prepare: Annotated[bool, typer.Option("--prepare", help="Write and export the weights, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier measurements, not the weights.")] = False,
) -> None:
    """Measure both encoders and the served pair on one GPU, with random weights of the true shapes."""
    signal.signal(signal.SIGTERM, _interrupt)  # as `timeout` and schedulers send it
    bench: Bench | None = None
    card: Card | None = None
    models: Pair | None = None
    code = 0
    try:
        card = None if prepare and shapes != Shapes.TINY else _card(shapes)
        on_cpu = shapes == Shapes.TINY and card is None
        precisions: Any = {"open_clip": "fp32" if on_cpu else "fp16", "eva_clip": "fp32" if on_cpu else precision.value}
        models = pair(shapes, precisions, dialect.value, link_weights, work)
        batches = sorted(set(batch or BATCHES))
        if card:
            check_memory(models, card, max(batches))
        models.make()
        if prepare:
            console.print(f"prepared {models.folder}; the same command without --prepare measures", markup=False)
            return
        np.save(work / "pixels.npy", test_pixels())
        settings = {"shapes": shapes.value, "folder": models.folder.name, "seconds": seconds, **machine(card)}
        bench = Bench.resume(models.folder, settings, fresh)
        for model in models.models:
            bench.describe(model.name, model.title, model.precision, model.flops_per_image(models.repository))
        runner = Runner(models, card, bench, batches, rounds, seconds, kinds(card, graphs, bench), work)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("", total=runner.steps() + len(batches) * rounds)
            for model in models.models:
                runner.run(model, bar, task)
            measure_served(models, card, bench, batches, rounds, seconds, work, bar, task)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here", style="yellow")
        code = 130
    except (CardError, ModelsError, ServerError, ClipchoirError, *REPORTED, OSError) as error:
        console.print(str(error), style="red", markup=False)
        code = 1
    if bench is not None and models is not None:
        bench.command = " ".join(["python -m benchmarks.gpu.run", *sys.argv[1:]])
        bench.save(models.folder)
        if card and bench.rates:
            record(bench, RESULTS)
            console.print(f"written to {RESULTS.relative_to(ROOT)}.md and .json")
        print(markdown([bench]))
    if code or (bench is not None and not bench.rates):
        raise typer.Exit(code or 1)


def kinds(card: Card | None, graphs: bool, bench: Bench) -> list[str]:
    """The keys of `WAYS` that this environment can measure."""
    import onnxruntime

    if card is None:
        return [ONNX, EAGER]
    if _CUDA not in onnxruntime.get_available_providers():
        why = "the onnxruntime installed is the one for CPUs; in an environment without it: pip install '.[gpu]'"
        bench.failures[ONNX] = why
        console.print(f"PyTorch alone is measured: {why}", style="yellow", markup=False)
        return [EAGER]
    return [ONNX, *([GRAPHS] if graphs else []), EAGER]


def check_memory(models: Pair, card: Card, batch: int) -> None:
    """Before anything is written.

    Raises:
        ModelsError: the largest encoder does not fit.
    """
    used = card.used()
    largest = max(models.models, key=lambda model: model.weight_bytes)
    needed = largest.card_bytes(batch)
    if needed <= card.memory - used:
        return
    if needed <= card.memory:
        advice = f"{used / 1e9:.0f} GB of it are in use: end the processes that nvidia-smi shows"
    else:
        advice = (
            f"take a card of {needed / 1e9:.0f} GB or more, or --shapes {Shapes.SCENES_8B.value}, or a smaller --batch"
        )
    raise ModelsError(
        f"{largest.title} needs about {needed / 1e9:.0f} GB of the card's memory at batch {batch}, the {card.name} has "
        f"{card.memory / 1e9:.0f} GB; {advice}"
    )


def machine(card: Card | None) -> dict[str, Any]:
    """What this runs on."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    cores = len(os.sched_getaffinity(0))
    where = card.describe() if card else {"card": None}
    return {**where, "cores": cores, "python": platform.python_version(), **installed}


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _card(shapes: Shapes) -> Card | None:
    try:
        return find_card()
    except CardError as error:
        if shapes == Shapes.TINY:
            console.print(f"{error}: running on the CPU", style="yellow", markup=False)
            return None
        raise CardError(
            f"{error}\nWithout one, --prepare makes the weights, and --shapes tiny runs on the CPU"
        ) from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
