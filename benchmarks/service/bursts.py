"""How many bursts of requests on an idle server are held up by Triton's batcher, with what in the configs.

    python -m benchmarks.service.bursts           # prints and writes results/bursts.md
    python -m benchmarks.service.bursts --quick   # fewer bursts; prints only

A burst is a number of requests of one image each, sent at the same time; the next one follows when all are answered.
It is held up if it takes a quarter of a second more than the median of the others. Needs build/demo (`make demo`).
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import tritonclient.grpc as grpcclient
import typer
from rich.console import Console

from benchmarks.common.ab import running, served
from benchmarks.common.fixtures import DEMO, ROOT
from benchmarks.common.in_process import draw

RESULTS = Path(__file__).parents[1] / "results" / "bursts.md"
SIZES = (2, 4, 8, 16)
HELD_UP = 0.25  # seconds more
console = Console(highlight=False)

Replacements = list[tuple[str, str]]
"""In a model's config, as `variants.served` takes them."""


def _delays(microseconds: int) -> Replacements:
    return [("max_queue_delay_microseconds: 2000", f"max_queue_delay_microseconds: {microseconds}")]


def _no_queue(timeout_ms: int, bound: str = "") -> Replacements:
    priorities = "  priority_levels: 3  # 1 goes first\n  default_priority_level: 2\n"
    policy = f"timeout_action: REJECT\n    default_timeout_microseconds: {timeout_ms * 1000}\n{bound}"
    return [*_delays(0), (f"{priorities}  default_queue_policy {{\n    {policy}  }}\n", "")]


ENCODERS = ("metaclip", "evaclip")
SHORT: dict[str, Replacements] = dict.fromkeys(("preprocess", *ENCODERS), _delays(500))
PRIORITIES = "priority_levels: 3 default_priority_level: 2"
VARIANTS: dict[str, dict[str, Replacements]] = {
    "as built": {},
    "delays of 0.5 ms": SHORT,
    "delays of 0.5 ms, and `ensembling` with priorities": {
        **SHORT,
        "ensembling": [("max_queue_delay_microseconds: 0", f"max_queue_delay_microseconds: 0 {PRIORITIES}")],
    },
    "two instances of each encoder, no delay": {
        encoder: [("count: 1", "count: 2"), *_delays(0)] for encoder in ENCODERS
    },
    "no priorities, timeouts and bounds at all": {
        "preprocess": _no_queue(10_000, "    max_queue_size: 128  # requests, of each priority\n"),
        **dict.fromkeys(ENCODERS, _no_queue(30_000)),
    },
}


def main(quick: Annotated[bool, typer.Option(help="Fewer bursts; write nothing.")] = False) -> None:
    """Count bursts that are held up."""
    if not DEMO.is_dir():
        console.print("build/demo is missing; make it with: make demo", style="red")
        raise typer.Exit(1)
    count = 20 if quick else 60
    lines = [f"| configs | {' | '.join(f'bursts of {size}' for size in SIZES)} |", "|---|" + "---|" * len(SIZES)]
    with tempfile.TemporaryDirectory(prefix="clipchoir-bursts-") as scratch:
        for number, (name, configs) in enumerate(VARIANTS.items()):
            cells = measured(configs, Path(scratch) / str(number), count)
            lines.append(f"| {name} | {' | '.join(cells)} |")
            console.print(lines[-1])
    table = "\n".join(lines)
    if quick:
        return
    RESULTS.write_text(
        "# Bursts on an idle server\n\n    python -m benchmarks.service.bursts\n\n"
        f"The demo pair on two CPU cores, {count} bursts of each size, each of requests of one image at the same "
        "time.\nHeld up is a burst that takes a quarter of a second more than the median of the others, which is in "
        "brackets.\n\n"
        f"{table}\n",
        encoding="utf-8",
    )
    console.print(f"wrote {RESULTS.relative_to(ROOT)}")


def measured(configs: dict[str, Replacements], repository: Path, count: int) -> list[str]:
    """Of the demo's repository with changed configs: a cell for each size of burst."""
    images = draw(count=max(SIZES))
    with served(DEMO, repository, {"configs": configs}) as triton, running(triton):
        clients = [grpcclient.InferenceServerClient(triton.address.grpc) for _ in images]

        def ask(number: int) -> None:
            image = grpcclient.InferInput("image", [1, 1], "BYTES")
            image.set_data_from_numpy(np.array([[images[number]]], np.object_))
            clients[number].infer("zero_shot", [image], client_timeout=60)

        return [_cell([_burst(ask, size) for _ in range(count)]) for size in SIZES]


def _burst(ask: Callable[[int], None], size: int) -> float:
    with ThreadPoolExecutor(size) as pool:
        start = time.perf_counter()
        list(pool.map(ask, range(size)))
        return time.perf_counter() - start


def _cell(seconds: list[float]) -> str:
    usual = float(np.median([each for each in seconds if each < 2 * min(seconds) + HELD_UP]))
    held_up = sum(each > usual + HELD_UP for each in seconds)
    return f"{held_up / len(seconds):.0%} held up ({1000 * usual:.0f} ms)"


if __name__ == "__main__":
    typer.run(main)
