"""The pair served by the embedded Triton, for gpu.py."""

import importlib.util
import io
import math
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress, TaskID

from benchmarks.common.in_process import draw
from benchmarks.common.server_usage import used_since
from benchmarks.gpu.card import Card
from benchmarks.gpu.models import Pair, console
from benchmarks.gpu.results import Bench, Served
from clipchoir import Client, ClipchoirError
from clipchoir_server.triton import Address, ServerError, Triton, serving

IN_FLIGHT = 4  # requests
_LOAD_TIMEOUT = 1800.0  # seconds
_ANSWER_TIMEOUT = 300.0  # seconds
_CUDA = "CUDAExecutionProvider"


def test_pixels() -> NDArray[np.uint8]:
    """Images as an encoder takes them, (N, 224, 224, 3)."""
    images = [Image.open(io.BytesIO(image)).convert("RGB").resize((224, 224)) for image in draw()]
    return np.stack([np.asarray(image) for image in images])


def measure_served(
    pair: Pair,
    card: Card | None,
    bench: Bench,
    batches: Sequence[int],
    rounds: int,
    seconds: float,
    work: Path,
    bar: Progress,
    task: TaskID,
) -> None:
    """Throughput of `zero_shot` with so many requests in flight, by batch; the batches take turns."""
    todo = [(number, batch) for number in range(rounds) for batch in batches if not bench.has_served(batch, number)]
    bar.advance(task, rounds * len(batches) - len(todo))
    if not todo:
        return
    reason = _obstacle(pair, card, max(batches))
    if reason is None:
        bar.update(task, description="starting tritonserver")
        before = card.used() if card else 0
        try:
            with (work / "triton.log").open("a") as log:
                variant = "gpu" if card else None
                with serving(pair.repository, Address.choose(), _LOAD_TIMEOUT, log.write, variant) as triton:
                    _rounds(triton, bench, todo, seconds, bar, task)
                    if card:
                        bench.add_memory("the pair", "Triton", card.used() - before)
        except (ServerError, ClipchoirError) as error:
            reason = str(error)
    if reason is not None:
        bench.failures["served"] = reason
        console.print(f"the pair was not served: {reason}", style="yellow", markup=False)


def _obstacle(pair: Pair, card: Card | None, batch: int) -> str | None:
    """Why the pair cannot be served here."""
    import onnxruntime

    if importlib.util.find_spec("pytriton") is None:
        return "the embedded Triton is not installed: pip install '.[server,gpu]'"
    if card is None:
        return None
    if _CUDA not in onnxruntime.get_available_providers():
        return "the onnxruntime installed is the one for CPUs; in an environment without it: pip install '.[gpu]'"
    needed = sum(model.card_bytes(batch) for model in pair.models)
    if needed > card.memory - card.used():
        return f"both encoders need about {needed / 1e9:.0f} GB of the card's {card.memory / 1e9:.0f} GB"
    return None


def _rounds(
    triton: Triton, bench: Bench, todo: Sequence[tuple[int, int]], seconds: float, bar: Progress, task: TaskID
) -> None:
    images = draw()
    counts: dict[int, int] = {}
    with Client(triton.address.grpc, concurrency=IN_FLIGHT, timeout=_ANSWER_TIMEOUT) as client:

        def send(count: int, batch: int) -> float:
            start = time.perf_counter()
            for result in client.stream(islice(cycle(images), count), batch_size=batch):
                result.raise_for_error()
            return count / (time.perf_counter() - start)

        for number, batch in todo:
            bar.update(task, description=f"Triton, batch {batch}, round {number + 1}")
            if batch not in counts:
                turn = IN_FLIGHT * batch
                send(turn, batch)  # the first ones are slow
                counts[batch] = max(2, math.ceil(send(turn, batch) * seconds / turn)) * turn
            with used_since(triton.process.pid, triton.address.grpc) as usage:
                rate = send(counts[batch], batch)
            means = {name: step.mean_batch for name, step in usage().steps.items()}
            bench.served.append(Served(batch, IN_FLIGHT, number, rate, means))
            console.print(f"Triton, batch {batch}: {rate:.1f} images/s", markup=False)
            bar.advance(task)
