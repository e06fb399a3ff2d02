"""Which lines of tritonserver's log an operator sees."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

# `W1126 17:21:55.102586 3771 metrics.cc:798] "message"`: the prefix of Google's logging library, which Triton uses.
_TRITON = re.compile(r"(?P<severity>[IWEF])\d{4} [\d:.]+ \d+ (?P<source>[^\s:\]]+:\d+)\] ?(?P<message>.*)")
# `2026-11-26 17:21:55.102 [W:onnxruntime:Default, file.cc:211 Function] message`, coloured on some machines
_ONNX_RUNTIME = re.compile(
    r"(?:\x1b\[[\d;]*m)?\d{4}-\d\d-\d\d [\d:.]+ \[(?P<severity>[VIWEF]):onnxruntime:[^,\]]*, "
    r"(?P<source>\S+:\d+)[^\]]*\] ?(?P<message>.*)"
)
_SHOWN = "WEF"
# What Triton 24.10, which the wheel pins, and ONNX Runtime say about a missing GPU.
_ABOUT_A_GPU = (
    "pinned_memory_manager.cc:",
    "cuda_memory_manager.cc:",
    "server.cc:241",
    "ensemble_scheduler.cc:1468",
    "metrics.cc:798",
    "device_discovery.cc:",
)


@dataclass(frozen=True)
class Record:
    """A line that begins a log message.

    Attributes:
        severity: the logging library's letter: V, I, W, E or F.
        source: file and line of the program that wrote it.
        message: the rest; Triton quotes it.
    """

    severity: str
    source: str
    message: str

    @classmethod
    def of(cls, line: str) -> "Record | None":
        """The record that a line begins; None: the line carries on another one, or is no log message."""
        match = _TRITON.match(line) or _ONNX_RUNTIME.match(line)
        return match and cls(**match.groupdict())

    @property
    def is_event(self) -> bool:
        """Whether the message is a step's JSON object with `event`."""
        try:
            text = json.loads(self.message)
            event = json.loads(text) if isinstance(text, str) and text.startswith("{") else None
        except ValueError:
            return False
        return isinstance(event, dict) and "event" in event


class LogFilter:
    """Lets warnings and errors through, the steps' events, and once the server is ready what has no severity."""

    def __init__(self, with_gpu: bool | None = None) -> None:
        """
        Args:
            with_gpu: whether the machine has a GPU of NVIDIA's, and complaints about it matter; None: find out.
        """
        self._harmless = () if (Path("/dev/nvidiactl").exists() if with_gpu is None else with_gpu) else _ABOUT_A_GPU
        self._in_table = False
        self.ready = False  # while models load, Triton's libraries print a lot

    def admits(self, line: str) -> bool:
        """Whether an operator should see a line; to be asked about each line, in order."""
        record = Record.of(line)
        if record is None:  # a row of a table, or what a process has printed
            return self.ready and not self._in_table
        self._in_table = not record.message
        if record.severity in _SHOWN:
            return not record.source.startswith(self._harmless)
        return record.is_event
