"""How many bursts of requests on an idle server are held up by Triton's batcher, with what in the configs.

    python benchmarks/bursts.py           # prints and writes results/bursts.md
    python benchmarks/bursts.py --quick   # fewer bursts; prints only

A burst is a number of requests of one image each, sent at the same time; the next one follows when all are answered.
It is held up if it takes a quarter of a second more than the median of the others. Needs build/demo (`make demo`).
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import tritonclient.grpc as grpcclient
import typer
from limit import draw
from repositories import DEMO, ROOT
from rich.console import Console

from clipchoir_server.triton import Address, serving

RESULTS = Path(__file__).parent / "results" / "bursts.md"
SIZES = (2, 4, 8, 16)
HELD_UP = 0.25  # seconds more
ENCODERS = ("metaclip", "evaclip")
STEPS = ("preprocess", *ENCODERS, "ensembling")
_BATCHING = re.compile(r"^dynamic_batching \{[^\n]*\}$|^dynamic_batching \{\n.*?^\}$", re.MULTILINE | re.DOTALL)
_DELAY = re.compile(r"max_queue_delay_microseconds: \d+")
console = Console(highlight=False)

Edit = Callable[[str, str], str]  # model, its config -> its config


def as_built(_: str, config: str) -> str:
    return config


def short_delays(model: str, config: str) -> str:
    return config if model == "ensembling" else _DELAY.sub("max_queue_delay_microseconds: 500", config)


def with_priorities(model: str, config: str) -> str:
    if model != "ensembling":
        return short_delays(model, config)
    return _BATCHING.sub("dynamic_batching { priority_levels: 3 default_priority_level: 2 }", config)


def two_instances(model: str, config: str) -> str:
    if model not in ENCODERS:
        return config
    config = config.replace("instance_group [ { count: 1 } ]", "instance_group [ { count: 2 } ]")
    return _DELAY.sub("max_queue_delay_microseconds: 0", config)


def without_any(_: str, config: str) -> str:
    return _BATCHING.sub("dynamic_batching { }", config)


VARIANTS: dict[str, Edit] = {
    "as built": as_built,
    "delays of 0.5 ms": short_delays,
    "delays of 0.5 ms, and `ensembling` with priorities": with_priorities,
    "two instances of each encoder, no delay": two_instances,
    "no priorities, timeouts and bounds at all": without_any,
}


def main(quick: Annotated[bool, typer.Option(help="Fewer bursts; write nothing.")] = False) -> None:
    """Count bursts that are held up."""
    if not DEMO.is_dir():
        console.print("build/demo is missing; make it with: make demo", style="red")
        raise typer.Exit(1)
    count = 20 if quick else 60
    lines = [f"| configs | {' | '.join(f'bursts of {size}' for size in SIZES)} |", "|---|" + "---|" * len(SIZES)]
    with tempfile.TemporaryDirectory(prefix="clipchoir-bursts-") as scratch:
        for name, edit in VARIANTS.items():
            cells = measured(edit, Path(scratch) / "repository", count)
            lines.append(f"| {name} | {' | '.join(cells)} |")
            console.print(lines[-1])
    table = "\n".join(lines)
    if quick:
        return
    RESULTS.write_text(
        "# Bursts on an idle server\n\n    python benchmarks/bursts.py\n\n"
        f"The demo pair on two CPU cores, {count} bursts of each size, each of requests of one image at the same "
        "time.\nHeld up is a burst that takes a quarter of a second more than the median of the others, which is in "
        "brackets.\n\n"
        f"{table}\n",
        encoding="utf-8",
    )
    console.print(f"wrote {RESULTS.relative_to(ROOT)}")


def measured(edit: Edit, repository: Path, count: int) -> list[str]:
    """Of a copy of the demo's repository with changed configs: a cell for each size of burst."""
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(DEMO, repository, symlinks=True)
    for model in STEPS:
        file = repository / model / "config.pbtxt"
        file.write_text(edit(model, file.read_text()))
    images = draw(count=max(SIZES))
    with serving(repository, Address.choose()) as triton:
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
