"""What a server's processes and steps did during a measurement."""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Step:
    """A model, during the measurement.

    Attributes:
        images: rows.
        mean_batch: rows per execution.
        queue_ms, compute_ms: per request, mean.
    """

    images: int
    mean_batch: float
    queue_ms: float
    compute_ms: float


@dataclass
class Usage:
    """Of a server.

    Attributes:
        cpu_seconds: user and system time of all its processes.
        memory_mib: PSS of all its processes, at the end.
        steps: by name of the model.
    """

    cpu_seconds: float
    memory_mib: float
    steps: dict[str, Step]


@contextmanager
def used_since(pid: int, url: str) -> Iterator[Callable[[], Usage]]:
    """Yields what tells the usage since now, up to the end of the block.

    Args:
        pid: of tritonserver.
        url: host:port of its gRPC endpoint.
    """
    with grpcclient.InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        cpu, before = cpu_seconds(pid), _statistics(client)
        found: list[Usage] = []
        yield lambda: found[0]
        after = _statistics(client)
        found.append(Usage(cpu_seconds(pid) - cpu, memory(pid), _steps(before, after)))


def _statistics(client: grpcclient.InferenceServerClient) -> dict[str, Any]:
    return {each.name: each for each in client.get_inference_statistics().model_stats}


def _steps(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Step]:
    steps = {}
    for name, now in after.items():
        then = before[name]
        images = now.inference_count - then.inference_count
        executions = now.execution_count - then.execution_count
        if images:
            mean = images / executions if executions else float("nan")
            steps[name] = Step(images, mean, _ms(now, then, "queue"), _ms(now, then, "compute_infer"))
    return steps


def _ms(now: Any, then: Any, kind: str) -> float:
    one, other = getattr(now.inference_stats, kind), getattr(then.inference_stats, kind)
    count = one.count - other.count
    return (one.ns - other.ns) / count / 1e6 if count else 0.0


def memory(pid: int) -> float:
    """MiB of a process and all below it; what they share is counted once."""
    total = 0
    for each in tree(pid):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])
    return total / 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it, of those that have ended too."""
    ticks = 0
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICK


def tree(pid: int) -> set[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = {pid}, [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all below it: SIGSTOP takes a server that has no turn off the others' cores."""
    for each in tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)
