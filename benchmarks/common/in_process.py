"""What the hardware allows: decode, both encoders and the scores in one process, without a server.

    python -m benchmarks.common.in_process         # of build/demo: every way of using the cores, and the best one
    python -m benchmarks.common.in_process --repository build/base-random --batch 8

The code is the served one: `preprocess`'s decoder, the encoders' ONNX files, `ensembling`'s scores. What is tried is
how many batches are worked on at a time, whether a batch's encoders run side by side and take it in parts, how many
threads each session has, and whether idle threads spin.
"""

import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

from clipchoir_server.backend.micro_batches import ROWS
from clipchoir_steps import layout
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.preprocess.batch import Batch, Decoder
from clipchoir_steps.preprocess.decode import Limits
from clipchoir_steps.preprocess.settings import Settings
from clipchoir_steps.scoring.formula import score
from clipchoir_steps.scoring.options import SOFTMAX_MEAN, Scoring
from demo import scenes

ROOT = Path(__file__).parents[2]

IMAGES = 64
CORES = len(os.sched_getaffinity(0))
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Way:
    """How the cores are used.

    Attributes:
        in_flight: batches that are worked on at a time, each from beginning to end in a thread of its own.
        threads: of each encoder's session.
        spinning: whether threads without work wait by spinning.
        side_by_side: whether the encoders of one batch run at the same time.
        rows: the encoders take a batch in parts of so many, one after the other; 0: as a whole.
    """

    in_flight: int
    threads: int
    spinning: bool
    side_by_side: bool
    rows: int = 0

    def __str__(self) -> str:
        encoders = "side by side" if self.side_by_side else "one after the other"
        spins = "spinning" if self.spinning else "not spinning"
        parts = f", {self.rows} rows at a time" if self.rows else ""
        return f"{self.in_flight} in flight, encoders {encoders}, {self.threads} threads each, {spins}{parts}"


class InProcess:
    """The pipeline of a repository in this process."""

    def __init__(self, repository: Path, way: Way) -> None:
        """
        Args:
            repository: built by clipchoir-export.
            way: how to use the cores.
        """
        threadpool_limits(1, "blas")  # as the server has it; NumPy's idle threads spin
        versions = {name: layout.newest(repository / name) for name in encoder_names(repository)}
        manifests = {name: layout.read_manifest(version) for name, version in versions.items()}
        self.encoders = [name for name, manifest in manifests.items() if manifest]
        self._sessions = [
            _open(version / layout.MODEL, way) for name, version in versions.items() if version and manifests[name]
        ]
        (size,) = {session.get_inputs()[0].shape[1] for session in self._sessions}
        self._size = size
        settings = Settings(
            Limits(1 << 26, 89_478_485, 65_535), threads=1 if way.in_flight > 1 else CORES, scaled_decoding=False
        )
        self._decoder = Decoder(settings, [size])
        fingerprints = {name: manifests[name]["fingerprint"] for name in self.encoders}
        self._texts = _default_label_set(repository, fingerprints)
        self._way = way
        self._helpers = ThreadPoolExecutor(max(1, way.in_flight * (len(self.encoders) - 1)))

    def run(self, rows: Sequence[bytes]) -> np.ndarray:
        """Encoded images -> class scores, (N, C)."""
        batch = Batch(rows, [self._size])
        self._decoder.decode([batch])
        pixels = batch.pixels[self._size]
        first, *others = self._sessions
        if self._way.side_by_side:
            later = [self._helpers.submit(self._encode, session, pixels) for session in others]
            embeddings = [self._encode(first, pixels), *(each.result() for each in later)]
        else:
            embeddings = [self._encode(session, pixels) for session in self._sessions]
        texts = [self._texts.texts(name, SOFTMAX_MEAN) for name in self.encoders]
        return score(embeddings, texts, Scoring((1.0,) * len(texts), 100.0, 0.0, SOFTMAX_MEAN)).ensemble

    def _encode(self, session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) -> (N, D)."""
        rows = self._way.rows or len(pixels)
        parts = [pixels[start : start + rows] for start in range(0, len(pixels), rows)]
        return np.concatenate([session.run(["embedding"], {"pixels": part})[0] for part in parts])

    def throughput(self, images: Sequence[bytes], batch_size: int, seconds: float) -> float:
        """Images per second, with so many batches in flight as the way has."""
        batches = [
            [images[(start + index) % len(images)] for index in range(batch_size)]
            for start in range(0, len(images), batch_size)
        ]
        self.run(batches[0])
        work: queue.SimpleQueue[None] = queue.SimpleQueue()
        stop = time.perf_counter() + seconds
        done: list[float] = []

        def worker(number: int) -> None:
            turn = number
            while time.perf_counter() < stop:
                self.run(batches[turn % len(batches)])
                done.append(time.perf_counter())
                turn += 1
            work.put(None)

        start = time.perf_counter()
        threads = [threading.Thread(target=worker, args=(number,)) for number in range(self._way.in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(done) * batch_size / (max(done) - start)

    def latencies(self, image: bytes, count: int) -> list[float]:
        """Seconds of single images, one after the other."""
        self.run([image])
        return [_seconds(lambda: self.run([image])) for _ in range(count)]


def encoder_names(repository: Path) -> list[str]:
    """In the order of the ensemble."""
    return layout.config_parameters(layout.read_config(repository / layout.ZERO_SHOT / layout.CONFIG))[
        "encoders"
    ].split(",")


def ways(quick: bool) -> list[Way]:
    """That are worth a try on these cores."""
    if quick:  # those that came first on two cores
        some = product((1, CORES), (False, True), (0, ROWS))
        return [
            Way(CORES if not side_by_side else 1, threads, False, side_by_side, rows)
            for threads, side_by_side, rows in some
        ]
    return [
        Way(in_flight, threads, spinning, side_by_side, rows)
        for in_flight, threads, spinning, side_by_side, rows in product(
            (1, CORES), sorted({1, CORES}), (False, True), (False, True), (0, ROWS)
        )
        if not (in_flight > 1 and side_by_side) and not (threads == 1 and spinning)
    ]


def best(
    repository: Path, images: Sequence[bytes], batch_size: int, seconds: float, rounds: int, quick: bool
) -> dict[Way, float]:
    """Throughput of each way, the best first."""
    found: dict[Way, list[float]] = {way: [] for way in ways(quick)}
    running = {way: InProcess(repository, way) for way in found}
    for way in track([*found] * rounds, "in-process limit", console=console, transient=True):
        found[way].append(running[way].throughput(images, batch_size, seconds))
    medians = {way: statistics.median(values) for way, values in found.items()}
    return dict(sorted(medians.items(), key=lambda pair: -pair[1]))


def draw(side: int | tuple[int, int] = 224, count: int = IMAGES) -> list[bytes]:
    """Scenes as JPEGs."""
    size = (side, side) if isinstance(side, int) else side
    return [scenes.render(scenes.CLASSES[seed % len(scenes.CLASSES)], seed, size).jpeg() for seed in range(count)]


def matmul_peak(seconds: float = 3.0) -> tuple[str, float]:
    """The fastest float32 matrix products on all cores: by NumPy, PyTorch or ONNX Runtime, the best of several sizes.

    Returns:
        Whose they are, and FLOP per second.
    """
    peaks: dict[str, float] = {}
    with threadpool_limits(CORES, "blas"):
        for size in (1024, 2048):
            one, other = (np.random.default_rng(seed).standard_normal((size, size), np.float32) for seed in (0, 1))
            for name, multiply in _multipliers(one, other).items():
                multiply()
                stop = time.perf_counter() + seconds / 6
                while time.perf_counter() < stop:
                    peaks[name] = max(peaks.get(name, 0.0), 2 * size**3 / _seconds(multiply))
    return max(peaks.items(), key=lambda pair: pair[1])


def _multipliers(one: np.ndarray, other: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Ways to multiply two square matrices, (N, N)."""
    import torch
    from onnx import TensorProto, helper

    shape = [*one.shape]
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    torch.set_num_threads(CORES)
    return {
        "NumPy": partial(np.matmul, one, other),
        "PyTorch": partial(torch.matmul, torch.from_numpy(one), torch.from_numpy(other)),
        "ONNX Runtime": partial(session.run, None, {"a": one, "b": other}),
    }


def gflop_per_image(repository: Path) -> float:
    """Of all encoders, from their manifests."""
    versions = [layout.newest(repository / name) for name in encoder_names(repository)]
    return sum(layout.read_manifest(version)["flops_per_image"] for version in versions) / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _open(path: Path, way: Way) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = way.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(way.spinning)))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _default_label_set(repository: Path, fingerprints: dict[str, str]) -> EmbeddedLabelSet:
    ensembling = layout.newest(repository / layout.ENSEMBLING) or repository
    first = next(iter(layout.label_set_files(layout.label_sets_folder(ensembling)).values()))
    return EmbeddedLabelSet.load(first, fingerprints)


def main(
    repository: Annotated[Path, typer.Option(help="Built by clipchoir-export.")] = ROOT / "build" / "demo",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Of each way.")] = 3,
) -> None:
    """Print the throughput of every way of using the cores."""
    found = best(repository, draw(), batch, seconds, rounds, quick=False)
    for way, throughput in found.items():
        print(f"{throughput:8.1f} images/s  {way}")


if __name__ == "__main__":
    typer.run(main)
