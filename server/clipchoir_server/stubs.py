"""The processes in which Triton runs Python: one for each instance of a Python step or of our onnxruntime backend."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NAME = "triton_python_backend_stub"[:15]  # as the kernel cuts it
_PROC = Path("/proc")


@dataclass(frozen=True)
class Stub:
    """A running stub.

    Attributes:
        model: whose step it is; `unknown` if it had died before anybody asked.
        started: when, in the kernel's ticks; a process number alone may come back as another process's.
    """

    pid: int
    model: str
    started: str

    def is_running(self) -> bool:
        """Whether the process is there; a killed one that nobody has asked for stays as a zombie."""
        stat = _stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state not in "ZX"

    def kill(self) -> None:
        """End it, if it is running."""
        if self.is_running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def stubs_of(tritonserver: int) -> list[Stub]:
    """The stubs that a tritonserver has started, by its process number."""
    return [stub for path in _PROC.glob("[0-9]*") if (stub := _stub(int(path.name), tritonserver))]


def _stub(pid: int, parent: int) -> Stub | None:
    stat = _stat(pid)
    if stat is None or stat.parent != parent or stat.name != _NAME:
        return None
    try:
        model_file = (_PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")[1]
    except (OSError, IndexError):  # it has died already
        return Stub(pid, "unknown", stat.started)
    return Stub(pid, Path(model_file).parent.parent.name, stat.started)  # REPOSITORY/MODEL/VERSION/FILE


@dataclass(frozen=True)
class _Stat:
    name: str
    state: str
    parent: int
    started: str


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    start, _, end = text.rpartition(")")  # the name may have anything in it
    fields = end.split()
    return _Stat(name=start.partition("(")[2], state=fields[0], parent=int(fields[1]), started=fields[19])
