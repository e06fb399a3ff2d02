"""Runs the tritonserver inside the `nvidia-pytriton` wheel."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir_server.address import Address
from clipchoir_server.errors import DiedError, ServerError
from clipchoir_server.installation import environment, prepare_backends, triton_folder
from clipchoir_server.log import LogFilter
from clipchoir_server.repository import SHM, STEP_SHARED_MEMORY, check_repository, thread_defaults
from clipchoir_server.stubs import Stub, stubs_of
from clipchoir_steps.blas import kernel_variable

__all__ = ["Address", "DiedError", "ServerError", "Triton", "serving"]

_PRCTL = ctypes.CDLL(None).prctl  # bound here: between fork and exec is no place for loading libraries
_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
_POLL = 0.05  # seconds
_WATCH = 0.2  # seconds
_CHANNEL = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)]  # it is near, or not there yet
_KEPT_LINES = 400
_LAST_LINES = 5.0  # seconds to wait for them


@contextmanager
def serving(
    repository: Path,
    address: Address,
    load_timeout: float = 600.0,
    on_line: Callable[[str], object] = sys.stderr.write,
    config_name: str | None = None,
) -> Iterator["Triton"]:
    """Serve a repository for the length of a `with` block; it starts when every model is ready.

    Args:
        repository: as `clipchoir-export build` writes it.
        address: where to listen.
        load_timeout: seconds that loading the models may take.
        on_line: is given the lines of tritonserver's log that an operator should see, see `log.LogFilter`.
        config_name: `gpu` for the models that have a `configs/gpu.pbtxt`.

    Raises:
        ServerError: the folder is no repository or has no such variant, /dev/shm is too small, or a model does not load
            (with the model's own error).
    """
    check_repository(repository, config_name)
    with tempfile.TemporaryDirectory(prefix="clipchoir-") as scratch:
        backends = Path(scratch) / "backends"
        prepare_backends(backends)
        with Triton(repository, backends, address, on_line, config_name) as triton:
            triton.wait_until_ready(load_timeout)
            yield triton


class Triton:
    """A running tritonserver. Use as a context manager: leaving it stops the server."""

    def __init__(
        self,
        repository: Path,
        backends: Path,
        address: Address,
        on_line: Callable[[str], object],
        config_name: str | None = None,
    ) -> None:
        """Start the server; `on_line` is given the lines of its log that an operator should see."""
        self.address = address
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._on_line: Callable[[str], object] | None = on_line
        self._filter = LogFilter()
        self._stubs: list[Stub] = []
        self._regions = f"clipchoir_{os.getpid()}_{address.grpc_port}_"
        self.process = subprocess.Popen(
            _command(repository, backends, address, self._regions, config_name),
            env={
                **thread_defaults(repository, len(os.sched_getaffinity(0))),
                **kernel_variable(os.environ),
                **environment(),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches it through us, once
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Triton":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DiedError):  # nothing can be answered any more, and a dead step would hold up the end
            self.stop(patience=0)
        else:
            self.stop()

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until every model is ready.

        Args:
            timeout: seconds.

        Raises:
            ServerError: a model did not load (the message is the model's own), the server ended, or the time is up.
        """
        deadline = time.monotonic() + timeout
        with grpcclient.InferenceServerClient(self.address.grpc, channel_args=_CHANNEL) as client:
            while not (self._is_listening(client) and self._has_metrics()):
                if self.process.poll() is not None:
                    raise ServerError(self._why_it_ended())
                if time.monotonic() > deadline:
                    raise ServerError(f"tritonserver was not ready within {timeout:g} s:\n{self.log()}")
                time.sleep(_POLL)
            index = client.get_model_repository_index(as_json=True).get("models", [])
        failed = [model for model in index if model.get("state") != "READY"]
        if failed:
            raise ServerError("\n".join(f"model {_explain(model)}" for model in failed))
        if not index:
            raise ServerError("the repository has no models")
        self._filter.ready = True
        self._stubs = stubs_of(self.process.pid)

    def wait(self) -> None:
        """Wait until the server or one of its stubs ends, which none of them does by itself.

        Triton starts no stub again, stays ready, and answers `INTERNAL` or nothing at all.

        Raises:
            DiedError: one of them has ended.
        """
        while self.process.poll() is None:
            for stub in self._stubs:
                if not stub.is_running():
                    raise DiedError(
                        f"the process {stub.pid} of the step {stub.model} has died",
                        event="step_died",
                        step=stub.model,
                        pid=stub.pid,
                    )
            time.sleep(_WATCH)
        raise DiedError(
            self._why_it_ended(), event="server_died", pid=self.process.pid, exit_code=self.process.returncode
        )

    def stop(self, patience: float = 20.0) -> None:
        """Ask the server to finish its requests and end; kill it after `patience` seconds."""
        self._on_line = None  # what a server says while it ends is of no interest
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            pass  # killed below, as after a second Ctrl-C
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for stub in self._stubs:  # of a tritonserver that has died
            stub.kill()
        self._reader.join(timeout=_LAST_LINES)
        for region in SHM.glob(f"{self._regions}*"):  # left there by a killed server
            region.unlink(missing_ok=True)

    def log(self) -> str:
        """The last lines of Triton's log."""
        return "".join(self._lines).rstrip()

    def _why_it_ended(self) -> str:
        self._reader.join(timeout=_LAST_LINES)
        return f"tritonserver ended with exit code {self.process.returncode}:\n{self.log()}"

    def _is_listening(self, client: grpcclient.InferenceServerClient) -> bool:
        try:
            return bool(client.is_server_live(client_timeout=1.0))
        except InferenceServerException:
            return False

    def _has_metrics(self) -> bool:
        """Triton opens this port last."""
        try:
            socket.create_connection((self.address.host, self.address.metrics_port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _read_log(self) -> None:
        assert self.process.stdout is not None  # noqa: S101  for the type checker: it is a pipe
        with self.process.stdout as log:
            for line in log:
                self._lines.append(line)  # whatever happens below, the pipe must be emptied, or tritonserver blocks
                if self._filter.admits(line):
                    self._forward(line)

    def _forward(self, line: str) -> None:
        on_line = self._on_line  # another thread may take it away
        if on_line is None:
            return
        try:
            on_line(line)
        except Exception:  # such as a closed stderr: nobody reads any more
            self._on_line = None


def _explain(model: dict[str, str]) -> str:
    return f"{model['name']}: {model.get('reason') or model.get('state', 'not loaded')}"


def _command(repository: Path, backends: Path, address: Address, regions: str, config_name: str | None) -> list[str]:
    triton = triton_folder()
    python = {"shm-default-byte-size": STEP_SHARED_MEMORY, "shm-region-prefix-name": regions}
    options = {
        "model-repository": repository.resolve(),
        "backend-directory": backends,
        "cache-directory": triton / "caches",
        "http-address": address.host,
        "grpc-address": address.host,
        "metrics-address": address.host,
        "http-port": address.http_port,
        "grpc-port": address.grpc_port,
        "metrics-port": address.metrics_port,
        "exit-on-error": "false",  # so that we can ask it which model failed, and why
        "strict-readiness": "true",
        "exit-timeout-secs": 10,
        "log-info": "true",  # for the steps' events; `LogFilter` holds back the rest
    }
    if config_name is not None:
        options["model-config-name"] = config_name
    return [
        str(triton / "bin" / "tritonserver"),
        *(f"--{key}={value}" for key, value in options.items()),
        *(f"--backend-config=python,{key}={value}" for key, value in python.items()),
    ]


def _die_with_parent() -> None:
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
