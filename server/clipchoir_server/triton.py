"""The tritonserver inside the `nvidia-pytriton` wheel: where it is, how it starts, and what it says."""

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from clipchoir_server.stubs import Stub, stubs_of

_PRCTL = ctypes.CDLL(None).prctl  # bound here: between fork and exec is no place for loading libraries
_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
_SHARED_MEMORY = 64 << 20  # bytes each Python step starts with: a batch of 64 images and its copies
_SHM = Path("/dev/shm")  # noqa: S108
_POLL = 0.05  # seconds
_WATCH = 0.2  # seconds
_CHANNEL = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)]  # it is near, or not there yet
_KEPT_LINES = 400
_LAST_LINES = 5.0  # seconds to wait for them
_LOADER_FAILED = 127  # exit code of a program whose shared libraries are missing
_OUR_BACKEND = "this onnxruntime backend"  # its warnings, which come while models load, are passed on
_HARMLESS = "pinned_memory_manager"  # it warns that there is no GPU


class ServerError(Exception):
    """The server cannot be started or has failed; the message says which model and why."""


class DiedError(ServerError):
    """A server that was up has died, as a whole or in part.

    Attributes:
        event: the same for machines.
    """

    def __init__(self, message: str, **event: object) -> None:
        super().__init__(message)
        self.event = event


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int

    @classmethod
    def choose(
        cls, host: str = "127.0.0.1", grpc_port: int = 0, http_port: int = 0, metrics_port: int = 0
    ) -> "Address":
        """An address whose ports were free a moment ago; port 0 stands for any.

        Raises:
            ServerError: a port is taken, or the host is not an address of this machine.
        """
        return cls(host, *_free_ports(host, (grpc_port, http_port, metrics_port)))

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"{self.host}:{self.http_port}"

    @property
    def metrics(self) -> str:
        return f"{self.host}:{self.metrics_port}"


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
        on_line: is given each line that tritonserver logs once the models are ready.
        config_name: `gpu` for the models that have a `configs/gpu.pbtxt`.

    Raises:
        ServerError: the folder is no repository or has no such variant, /dev/shm is too small, or a model does not load
            (with the model's own error).
    """
    if not (repository / "zero_shot" / "config.pbtxt").is_file():
        raise ServerError(f"{repository} is not a clipchoir repository; build one with: clipchoir-export build demo")
    if config_name is not None:
        _check_variant(repository, config_name)
    _check_shared_memory(repository)
    with tempfile.TemporaryDirectory(prefix="clipchoir-") as scratch:
        backends = Path(scratch) / "backends"
        _prepare_backends(backends)
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
        """Start the server; `on_line` is given each line of its log once every model is ready."""
        self.address = address
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._on_line = on_line
        self._announce = threading.Event()
        self._stubs: list[Stub] = []
        self._regions = f"clipchoir_{os.getpid()}_{address.grpc_port}_"
        self.process = subprocess.Popen(
            _command(repository, backends, address, self._regions, config_name),
            env={**thread_defaults(repository, len(os.sched_getaffinity(0))), **_environment()},
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
                    raise ServerError(self._epitaph())
                if time.monotonic() > deadline:
                    raise ServerError(f"tritonserver was not ready within {timeout:g} s:\n{self.log()}")
                time.sleep(_POLL)
            index = client.get_model_repository_index(as_json=True).get("models", [])
        failed = [model for model in index if model.get("state") != "READY"]
        if failed:
            raise ServerError("\n".join(f"model {_explain(model)}" for model in failed))
        if not index:
            raise ServerError("the repository has no models")
        for line in list(self._lines):  # a copy, since the reader goes on adding to them
            if _OUR_BACKEND in line:
                self._tell(line)
        self._announce.set()
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
        raise DiedError(self._epitaph(), event="server_died", pid=self.process.pid, exit_code=self.process.returncode)

    def stop(self, patience: float = 20.0) -> None:
        """Ask the server to finish its requests and end; kill it after `patience` seconds."""
        self._announce.clear()
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
        for region in _SHM.glob(f"{self._regions}*"):  # left there by a killed server
            region.unlink(missing_ok=True)

    def log(self) -> str:
        """The last lines of Triton's log."""
        return "".join(self._lines).rstrip()

    def _epitaph(self) -> str:
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
                if self._announce.is_set() and _HARMLESS not in line:
                    self._tell(line)

    def _tell(self, line: str) -> None:
        try:
            self._on_line(line)
        except Exception:  # such as a closed stderr: nobody is left to be told
            self._announce.clear()


def _prepare_backends(folder: Path) -> None:
    """Lay out a backend directory: Triton's Python backend with this Python's stub, and our onnxruntime backend."""
    triton = _triton_folder()
    shutil.copytree(triton / "backends" / "python", folder / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(f"the embedded Triton has no stub for Python {version}; use Python 3.10, 3.11 or 3.12")
    check_that_it_starts(stub)
    shutil.copy(stub, folder / "python")
    shutil.copytree(Path(__file__).parent / "backends" / "onnxruntime", folder / "onnxruntime")


def check_that_it_starts(stub: Path) -> None:
    """A stub that cannot start would leave tritonserver waiting for ever."""
    trial = subprocess.run([stub], env=_environment(), capture_output=True, text=True, check=False)
    if trial.returncode == _LOADER_FAILED:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ServerError(
            f"the embedded Triton cannot start Python: {trial.stderr.strip()}\n"
            f"It needs the shared library of Python {version}: install it (Debian and Ubuntu: "
            f"apt-get install libpython{version}), or use a Python that was built with --enable-shared"
        )


def _check_shared_memory(repository: Path) -> None:
    models = len(list(repository.glob("*/config.pbtxt"))) - 1  # zero_shot has no process
    needed = 2 * models * _SHARED_MEMORY  # Triton may start two processes for a model
    free = shutil.disk_usage(_SHM).free
    if free < needed:
        raise ServerError(
            f"{_SHM} has {free >> 20} MiB free, the repository's steps need {needed >> 20} MiB to exchange tensors; "
            f"enlarge it (in a container: --shm-size={-(-needed >> 30)}g)"
        )


def _check_variant(repository: Path, config_name: str) -> None:
    variants = sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})
    if config_name not in variants:
        raise ServerError(
            f"no model of {repository} has a configs/{config_name}.pbtxt; there is {', '.join(variants) or 'none'}"
        )


def _explain(model: dict[str, str]) -> str:
    return f"{model['name']}: {model.get('reason') or model.get('state', 'not loaded')}"


def _command(repository: Path, backends: Path, address: Address, regions: str, config_name: str | None) -> list[str]:
    triton = _triton_folder()
    python = {"shm-default-byte-size": _SHARED_MEMORY, "shm-region-prefix-name": regions}
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
        "log-info": "false",
    }
    if config_name is not None:
        options["model-config-name"] = config_name
    return [
        str(triton / "bin" / "tritonserver"),
        *(f"--{key}={value}" for key, value in options.items()),
        *(f"--backend-config=python,{key}={value}" for key, value in python.items()),
    ]


def _environment() -> dict[str, str]:
    # The stub links against this Python's own libpython, which is not always where the loader looks.
    libraries = [sysconfig.get_config_var("LIBDIR"), str(_triton_folder().parents[1] / "nvidia_pytriton.libs")]
    environment = dict(os.environ)
    # The stub finds its Python, and with it this environment's packages, through PATH.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    inherited = environment.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, inherited] if inherited else libraries)
    return environment


def thread_defaults(repository: Path, cores: int) -> dict[str, str]:
    """Threads of steps, each of which believes to have all cores, where the user's environment does not say otherwise.

    A large batch keeps all cores busy part by part. Threads within a part are for single images on idle servers, where
    the encoders run side by side.
    """
    config = model_config_pb2.ModelConfig()
    with suppress(text_format.ParseError, OSError, UnicodeDecodeError):  # Triton says it better
        text_format.Parse((repository / "zero_shot" / "config.pbtxt").read_text(), config)
    encoders = len(config.parameters["encoders"].string_value.split(","))
    return {"CLIPCHOIR_SESSION_THREADS": str(max(1, cores // encoders)), "OPENBLAS_NUM_THREADS": "1"}


def _die_with_parent() -> None:
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_ports(host: str, ports: tuple[int, ...]) -> list[int]:
    if ":" in host:
        raise ServerError(f"cannot listen on {host}: the embedded Triton takes IPv4 addresses and host names only")
    with ExitStack() as stack:
        found = []
        for port in ports:
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
            found.append(probe.getsockname()[1])
        if len(set(found)) < len(found):
            raise ServerError(f"gRPC, HTTP and metrics need three different ports, got {', '.join(map(str, found))}")
        return found


def _triton_folder() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("the embedded Triton is not installed: pip install '.[server,cpu]'")
    return Path(spec.origin).parent / "tritonserver"
