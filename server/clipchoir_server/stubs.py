"""The processes in which Triton runs Python: one for each instance of a Python step or of our onnxruntime backend."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_NAME = "triton_python_backend_stub"[:15]  # as the kernel cuts it


@dataclass(frozen=True)
class Stub:
    """A running stub.

    Attributes:
        model: whose step it is; `unknown` if it had died before anybody asked.
        process: psutil knows it by its start as well, since a process number alone may come back as another process's.
    """

    model: str
    process: psutil.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_running(self) -> bool:
        """Whether the process is there; a killed one that nobody has asked for stays as a zombie."""
        try:
            return self.process.is_running() and self.process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End it, if it is running."""
        with suppress(psutil.NoSuchProcess):
            self.process.kill()


def stubs_of(tritonserver: int) -> list[Stub]:
    """The stubs that a tritonserver has started, by its process number."""
    try:
        children = psutil.Process(tritonserver).children()
    except psutil.NoSuchProcess:
        return []
    return [stub for child in children if (stub := _stub(child))]


def _stub(process: psutil.Process) -> Stub | None:
    try:
        name = process.name()
    except psutil.NoSuchProcess:
        return None
    if not name.startswith(_NAME):
        return None
    try:
        model_file = process.cmdline()[1]
    except (psutil.Error, IndexError):  # it has died already
        return Stub("unknown", process)
    return Stub(Path(model_file).parent.parent.name, process)  # REPOSITORY/MODEL/VERSION/FILE
