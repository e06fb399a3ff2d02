"""The processes that measure one encoder each, seen from the benchmark."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_PROGRAM = "benchmarks.gpu.runtimes"
_ROOT = Path(__file__).parents[2]
_DEADLINE = 1800.0  # seconds: loading 35 GB from a slow disk, or compiling 48 layers
_LAST_LINES = 15
_SHOWN = 600  # characters of a runtime's own message


class RunError(Exception):
    """A runtime cannot do it; the message is its own."""


class Run:
    """A runtime with an encoder, loaded. Use as a context manager: leaving it ends the process."""

    def __init__(self, settings: Mapping[str, Any], log: Path, caches: Path) -> None:
        """
        Args:
            settings: for runtimes.py.
            log: file that the process writes to.
            caches: folder for what torch.compile makes, so that the next run need not.

        Raises:
            RunError: it does not load.
        """
        environment = dict(os.environ)
        environment |= {"HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
        environment |= {"TRITON_CACHE_DIR": str(caches / "triton")}
        self._log = log
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                cwd=_ROOT,
                start_new_session=True,  # Ctrl-C ends it through us
            )
        try:
            self.info = self._read()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def rate(self, way: str, batch: int, seconds: float) -> float:
        """Images per second.

        Raises:
            RunError: it failed.
        """
        return float(self._ask(do="rate", way=way, batch=batch, seconds=seconds)["images_per_second"])

    def embed(self, way: str, batch: int) -> list[list[float]]:
        """Embeddings of the first images, (N, D).

        Raises:
            RunError: it failed.
        """
        embeddings: list[list[float]] = self._ask(do="embed", way=way, batch=batch)["embeddings"]
        return embeddings

    def peak(self, seconds: float) -> float:
        """FLOP per second of matrix products in the encoder's precision.

        Raises:
            RunError: it failed.
        """
        return float(self._ask(do="peak", seconds=seconds)["flops"])

    def stop(self) -> None:
        """End the process, and those that compile for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # it died with a request unread
                    pipe.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101  for the type checker: it is a pipe
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunError(self._epitaph()) from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  for the type checker: it is a pipe
        timer = threading.Timer(_DEADLINE, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RunError(self._epitaph())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"{answer['error'][:_SHOWN]} (more in {self._log.name})")
        return answer

    def _epitaph(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return f"its process ended with exit code {code} (-9: out of memory, or too slow): {' / '.join(lines)}"[:_SHOWN]
