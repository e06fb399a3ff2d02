"""What shared memory gains for the images of requests to a server on the same machine.

    python -m benchmarks.service.shared_memory   # prints and writes results/shared_memory.md; needs build/demo

The client sends the same batches through its connection and through system shared memory, in turns.
"""

import resource
import statistics
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common.in_process import draw
from clipchoir import Client
from clipchoir_server.triton import Address, serving

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parents[1] / "results" / "shared_memory.md"
CASES = (((224, 224), 8, 480), ((1600, 1200), 8, 240), ((1600, 1200), 32, 320))  # size, batch, images


def measure(client: Client, images: Sequence[bytes], batch: int, count: int) -> tuple[float, float]:
    """Images per second, and milliseconds of the client's CPU per image."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for result in client.stream(islice(cycle(images), count), batch_size=batch):
        result.raise_for_error()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return count / seconds, 1000 * cpu / count


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of both, in turns.")] = 8,
    repository: Annotated[Path, typer.Option(help="To serve.")] = ROOT / "build" / "demo",
) -> None:
    """Print the ratios."""
    lines = [
        "| images | batch | bytes per request | shared memory / connection | lowest to highest | CPU of the client |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    with serving(repository, Address.choose()) as server:
        url = server.address.grpc
        with Client(url) as plain, Client(url, shared_memory=True) as sharing:
            for size, batch, count in CASES:
                images = draw(size, 32)
                runs: dict[Client, list[tuple[float, float]]] = {plain: [], sharing: []}
                for client in runs:
                    measure(client, images, batch, batch * 4)
                for number in range(rounds):
                    for client in (plain, sharing) if number % 2 else (sharing, plain):
                        runs[client].append(measure(client, images, batch, count))
                ratios = [one[0] / other[0] for one, other in zip(runs[sharing], runs[plain], strict=True)]
                cpu = [statistics.median(each for _, each in some) for some in (runs[sharing], runs[plain])]
                lines.append(
                    f"| {size[0]}x{size[1]} | {batch} | {sum(map(len, images[:batch])):,} "
                    f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
                    f"| {cpu[0]:.2f} and {cpu[1]:.2f} ms per image |"
                )
                print(lines[-1], flush=True)
    RESULT.write_text(
        "# What shared memory gains\n\n    python -m benchmarks.service.shared_memory\n\n"
        "The demo pair on two cores, four requests in flight; throughput through system shared memory as a share of\n"
        f"that through the connection, medians of {rounds} rounds in turns. It is off by default: what it saves is\n"
        "small beside decoding and encoding.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
