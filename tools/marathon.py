"""A long run of `clipchoir classify`, disturbed on purpose: every image has to have its one right row in the end.

python -m tools.marathon --images 100000        # or: make marathon IMAGES=100000
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clipchoir import Client, ClipchoirError
from tests.conftest import BIN, ROOT, SAMPLES
from tests.support.launcher import Launched, descendants, launched

FOLDERS = 100
MOST_MEMORY = 300.0  # MiB, of the client
PATIENCE = 120  # seconds; the server takes some to come back
LOOK = 0.25  # seconds between two looks at the run

say = Console(stderr=True, highlight=False).print


def images_in(folder: Path, count: int) -> Iterator[tuple[Path, int]]:
    """Paths in natural order, each with the number of the sample that it is."""
    each = -(-count // FOLDERS)
    for number in range(count):
        yield folder / f"part{number // each}" / f"image{number % each}.jpg", (number * 7) % len(SAMPLES)


def lay_out(folder: Path, count: int) -> None:
    """The samples over and over, as links."""
    originals = [(folder.parent / f"sample{number}.jpg") for number in range(len(SAMPLES))]
    for copy, sample in zip(originals, SAMPLES, strict=True):
        copy.write_bytes(sample.read_bytes())
    for path, sample_number in images_in(folder, count):
        if path.name == "image0.jpg":
            path.parent.mkdir(parents=True)
        os.link(originals[sample_number], path)


def resident(pid: int) -> float:
    """MiB of a process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def rows_so_far(partial: Path) -> int:
    """By the size of the file: counting would take long."""
    if not partial.exists() or not (size := partial.stat().st_size):
        return 0
    with partial.open("rb") as file:
        return int(size / len(file.readline()))


def kill_server(server: Launched) -> None:
    """The whole tritonserver, as if it had crashed; the launcher starts it again."""
    for pid in descendants(server.process.pid):
        if "bin/tritonserver" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
            os.kill(pid, signal.SIGKILL)
            return


def known_labels(url: str) -> list[str]:
    """Of each sample alone, once the server answers."""
    until = time.monotonic() + 60
    while True:
        try:
            with Client(url) as client:
                return [client.classify([sample])[0].label for sample in SAMPLES]
        except ClipchoirError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def wrong_rows(out: Path, folder: Path, count: int, labels: list[str]) -> int:
    """Rows that are of another image than the one in their place, or have another label; missing ones too."""
    wrong = 0
    with out.open() as lines:
        for path, sample in images_in(folder, count):
            line = lines.readline()
            row = json.loads(line) if line else {}
            wrong += row.get("source") != str(path) or row.get("label") != labels[sample]
        return wrong + sum(1 for _ in lines)


def main(
    images: Annotated[int, typer.Option(min=FOLDERS, help="How many.")] = 100_000,
    repository: Annotated[Path, typer.Option(help="Repository of the demo pair.")] = ROOT / "build" / "demo",
) -> None:
    """Classify many images while the server is killed twice and the client once.

    Exit code 1: a row is wrong, missing or there twice, or the client takes too much memory.
    """
    with tempfile.TemporaryDirectory(prefix="clipchoir-marathon-") as name:
        scratch = Path(name)
        folder, out = scratch / "images", scratch / "out.jsonl"
        lay_out(folder, images)
        with launched(repository, scratch, "--restarts", "20") as server:
            labels = known_labels(server.grpc)
            start = time.monotonic()
            memory, code = _run(server, folder, out, images)
            seconds = time.monotonic() - start
            deaths = server.deaths()
        wrong = wrong_rows(out, folder, images, labels) if out.exists() else images
    print(f"{images} images in {seconds:.0f} s, {images / seconds:.0f} images/s; the client's exit code {code}")
    print(f"wrong, missing or superfluous rows {wrong}")
    print(f"the client's memory (RSS) at most {memory:.0f} MiB; at most {MOST_MEMORY:g} is allowed")
    print(f"the server died {len(deaths)} times, the client was killed once")
    if wrong or code or memory > MOST_MEMORY:
        raise typer.Exit(1)


def _run(server: Launched, folder: Path, out: Path, images: int) -> tuple[float, int]:
    """The client's largest memory, and its exit code in the end."""
    options = ("--url", server.grpc, "--patience", str(PATIENCE))
    command: list[str | Path] = [BIN / "clipchoir", "classify", folder, "--out", out, *options]
    disturbances = [(0.2, "server"), (0.5, "client"), (0.75, "server")]
    partial = out.with_name(out.name + ".partial")
    memory, told = 0.0, 0.0
    client = subprocess.Popen(command)
    try:
        while client.poll() is None:
            memory = max(memory, resident(client.pid))
            share = rows_so_far(partial) / images
            if share - told >= 0.05:
                told = share
                say(f"{share:.0%}")
            if disturbances and share >= disturbances[0][0]:
                _, whom = disturbances.pop(0)
                say(f"killing the {whom}")
                if whom == "server":
                    kill_server(server)
                else:
                    client.kill()
                    client.wait()
                    known_labels(server.grpc)  # the server may have died of it
                    client = subprocess.Popen([*command, "--resume"])
            time.sleep(LOOK)
        return memory, client.returncode
    finally:
        client.kill()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    typer.run(main)
