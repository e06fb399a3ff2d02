"""The command `clipchoir-server` as a process, and the processes that it starts."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tests.conftest import BIN

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
STOP_WITHIN = 60.0  # seconds


@contextmanager
def started(
    repository: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and the gRPC address that it printed; `environment` stands for the tests' own."""
    command: list[str | Path] = [BIN / "clipchoir-server", repository, *FREE_PORTS, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"gRPC (127\.0\.0\.1:\d+)", line)
            assert match, line + (process.stderr.read() if process.stderr else "")
            yield process, match[1]
        finally:
            process.kill()


@dataclass(frozen=True)
class Launched:
    """A launcher that runs, where its server listens, and the file that it logs to."""

    process: subprocess.Popen[str]
    grpc: str
    metrics: str
    log: Path

    def deaths(self) -> list[str]:
        """What it has said about deaths so far."""
        return re.findall(r"^clipchoir-server (event=\w+_died .*)$", self.log.read_text(), re.MULTILINE)


@contextmanager
def launched(repository: Path, folder: Path, *options: str) -> Iterator[Launched]:
    """The command for long runs: with a new label set cache, and a log that no pipe can hold up, both in `folder`."""
    log = folder / "server.log"
    command: list[str | Path] = [BIN / "clipchoir-server", repository, *FREE_PORTS, *options]
    environment = os.environ | {"CLIPCHOIR_CACHE": str(folder / "label_sets")}
    with (
        log.open("w") as stderr,
        # Its own session: Ctrl-C is for the clients first.
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"gRPC (\S+:\d+), .* metrics (\S+:\d+)/", line)
            assert match, line + log.read_text()
            Thread(target=process.stdout.read, daemon=True).start()
            yield Launched(process, match[1], match[2], log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()


def descendants(pid: int) -> set[int]:
    """Process ids below a process, whatever sessions they are in."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def gone(pids: set[int], within: float = 20.0) -> bool:
    """Whether all these processes end within some seconds; zombies have ended."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
