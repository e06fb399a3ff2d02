"""The servers that benchmarks/peers/run.py compares: how each starts, is asked, and answers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.common.in_process import CORES
from benchmarks.common.server_usage import signal_tree
from benchmarks.peers.apps.pipeline import SETTINGS, Settings
from benchmarks.peers.environments import ENVIRONMENTS, python_of
from benchmarks.peers.load import TIMEOUT, Connect, HttpConnection, Target
from benchmarks.peers.report import OURS
from clipchoir import Client, ClipchoirError
from clipchoir_server.triton import Address, serving

PROGRAMS = Path(__file__).parent / "apps"
START_TIMEOUT = 120.0  # seconds
TITLES = {"fastapi": "FastAPI + ONNX Runtime", "litserve": "LitServe", "bentoml": "BentoML"}
N = CORES
# What is worth a try; the first was the best of them on two cores, and is what --quick takes.
TRIED: dict[str, list[Settings]] = {
    "fastapi": [
        Settings("", threads=N),
        Settings("", workers=N),
        Settings("", session_threads=N, spinning=True),
        Settings("", threads=N, session_threads=N),
        Settings("", side_by_side=True),
        Settings("", threads=2 * N),
    ],
    "litserve": [
        Settings("", workers=N),
        Settings("", workers=N, max_batch=4, wait=1.0),
        Settings("", session_threads=N, spinning=True),
        Settings("", side_by_side=True, max_batch=4, wait=1.0),
        Settings("", workers=N + 1),
    ],
    "bentoml": [
        Settings("", workers=N, max_batch=64),
        Settings("", workers=N, max_batch=32),
        Settings("", session_threads=N, spinning=True, max_batch=64),
        Settings("", side_by_side=True, max_batch=64),
        Settings("", workers=N + 1, max_batch=64),
    ],
}
Requests = list[tuple[bytes, dict[str, str]]]


class PeerFailedError(Exception):
    """A server does not start, or its scores are wrong."""


@dataclass
class Server:
    """A running candidate.

    Attributes:
        name: for tables.
        pid: all its processes are this one and those below it.
        address: host:port.
        triton: whether it speaks Triton's protocol.
        settings: of a peer.
        grpc: host:port of Triton's other endpoint.
        by_client: whether our own client is the load.
    """

    name: str
    pid: int
    address: str
    triton: bool = False
    settings: Settings | None = None
    grpc: str = ""
    by_client: bool = False

    def requests(self, batches: Sequence[Sequence[bytes]]) -> Requests:
        """Bodies and headers, made once."""
        return [(_triton_request if self.triton else _peer_request)(batch) for batch in batches]

    def target(self, batches: Sequence[Sequence[bytes]]) -> Target:
        """For load of batches that are all of one size."""
        if self.by_client:
            connect: Connect = OurClient(self.grpc, batches).connect
        else:
            requests, path = self.requests(batches), _path(self.triton)

            def connect(_: int) -> HttpConnection:
                return HttpConnection(self.address, path, requests)

        return Target(self.pid, connect, len(batches[0]))

    def ask(self, images: Sequence[bytes]) -> tuple[list[list[float] | None], list[str]]:
        """Scores and error of each image.

        Raises:
            PeerFailedError: the answer is not 200; with what it says.
            OSError: no answer.
        """
        connection = HttpConnection(self.address, _path(self.triton), self.requests([images]))
        with contextlib.closing(connection):
            status, body = connection.exchange(0)
        if status != 200:
            raise PeerFailedError(f"HTTP {status}: {body[:300].decode(errors='replace')}")
        return _triton_answer(body) if self.triton else _peer_answer(body)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Not paused, for a while."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop its processes, so that it takes nothing from the others' cores while it is idle."""
        signal_tree(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        signal_tree(self.pid, signal.SIGCONT)


class OurClient:
    """One client of ours for all connections; it makes each request anew, as it does for its users."""

    def __init__(self, url: str, batches: Sequence[Sequence[bytes]]) -> None:
        self._url, self._batches = url, batches
        self._open = 0

    def connect(self, connections: int) -> "OurClient":
        """Make it, unless it is there."""
        if not self._open:
            self._client = Client(self._url, concurrency=connections, timeout=TIMEOUT, patience=0.0)
            self._client.classify(self._batches[0][:1])
        self._open += 1
        return self

    def send(self, number: int) -> str:
        batch = self._batches[number % len(self._batches)]
        try:
            self._client.classify(batch, batch_size=len(batch))
        except ClipchoirError as error:
            return type(error).__name__
        return ""

    def close(self) -> None:
        self._open -= 1
        if not self._open:
            self._client.close()


@contextmanager
def ours(repository: Path) -> Iterator[Server]:
    """clipchoir's own server."""
    with serving(repository, Address.choose(), on_line=lambda _: None) as triton:
        server = Server(OURS, triton.process.pid, triton.address.http, triton=True, grpc=triton.address.grpc)
        try:
            yield server
        finally:
            server.resume()


@contextmanager
def peer(name: str, settings: Settings) -> Iterator[Server]:
    """A peer's server.

    Raises:
        PeerFailedError: it ends, or does not answer in time.
        EnvironmentFailedError: it cannot be installed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        SETTINGS: json.dumps(asdict(settings)),
        "BENTOML_HOME": str(ENVIRONMENTS / "bentoml-home"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",  # as our server has it; its idle threads spin
    }
    with tempfile.TemporaryFile() as log:
        command = [str(part) for part in (python_of(name), *_command(name, settings, port))]
        process = subprocess.Popen(
            command,
            cwd=PROGRAMS,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        server = Server(TITLES[name], process.pid, f"127.0.0.1:{port}", settings=settings)
        try:
            _wait_until_ready(server, process)
            yield server
        except PeerFailedError as error:
            log.seek(0)
            last = log.read().decode(errors="replace")[-2000:]
            raise PeerFailedError(f"{server.name}, {settings}: {error}\n{last}") from error
        finally:
            _end(server, process)


@dataclass
class Seed:
    """The seed's way, in a process of its own."""

    workers: int
    process: subprocess.Popen

    def run(self, images: int, expected: np.ndarray) -> float:
        """Images per second of one pass over so many.

        Raises:
            PeerFailedError: it ends, or its scores are not those of the formula.
        """
        into, out = self.process.stdin, self.process.stdout
        if into is None or out is None:
            raise PeerFailedError("the PyTorch program has no pipes")
        try:
            into.write(f"{images}\n")
            into.flush()
            answer = json.loads(out.readline())
        except (OSError, ValueError) as error:
            raise PeerFailedError("the PyTorch program ended; see its message above") from error
        if not np.allclose(answer["scores"][: len(expected)], expected, atol=1e-3):
            raise PeerFailedError("the PyTorch program's scores are not those of the others")
        return answer["images_per_second"]


@contextmanager
def seed(repository: Path, batch: int, workers: int) -> Iterator[Seed]:
    """Starts it; models are loaded before its first pass."""
    command = [sys.executable, str(PROGRAMS / "seed.py"), str(repository), str(batch), str(workers)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield Seed(workers, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def describe(settings: Settings) -> str:
    """What is not as by default."""
    defaults = Settings(settings.repository)
    different = [each.name for each in fields(Settings) if getattr(settings, each.name) != getattr(defaults, each.name)]
    return ", ".join(f"{name} {getattr(settings, name)}" for name in different) or "defaults"


def check(server: Server, images: Sequence[bytes], expected: np.ndarray) -> None:
    """Its scores are those of the formula, for a batch.

    Raises:
        PeerFailedError: they are not.
    """
    scores, errors = server.ask(images)
    if any(errors) or not np.allclose(np.array(scores, np.float64), expected, atol=1e-4):
        raise PeerFailedError(f"{server.name} answers other scores than the others do")


def _command(name: str, settings: Settings, port: int) -> list[object]:
    if name == "fastapi":
        options = ["--workers", settings.workers, "--log-level", "warning", "--no-access-log"]
        return ["-m", "uvicorn", "fastapi_app:app", "--port", port, *options]
    if name == "litserve":
        return ["litserve_app.py", port]
    return ["-m", "bentoml", "serve", "bentoml_app:Classifier", "--host", "127.0.0.1", "--port", port]


def _wait_until_ready(server: Server, process: subprocess.Popen) -> None:
    image = Path(__file__).parents[2] / "demo" / "samples"
    images = [min(image.rglob("*.jpg")).read_bytes()]
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            server.ask(images)
            return
        except (OSError, PeerFailedError) as error:
            if process.poll() is not None:
                raise PeerFailedError(f"it ended with exit code {process.returncode}") from error
            if time.monotonic() > deadline:
                raise PeerFailedError(f"it was not ready within {START_TIMEOUT:.0f} s: {error}") from error
            time.sleep(0.2)


def _end(server: Server, process: subprocess.Popen) -> None:
    """Ask, then kill what is left of it."""
    server.resume()
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    process.wait()


def _path(triton: bool) -> str:
    return "/v2/models/zero_shot/infer" if triton else "/classify"


def _framed(images: Sequence[bytes]) -> bytes:
    return b"".join(len(image).to_bytes(4, "little") + image for image in images)


def _peer_request(images: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    return _framed(images), {"Content-Type": "application/octet-stream"}


def _triton_request(images: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """With the extension for binary tensors; the outputs are those that the peers answer with."""
    data = _framed(images)
    tensor = {
        "name": "image",
        "shape": [len(images), 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("scores", "label", "error")]
    header = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    return header + data, {"Content-Type": "application/octet-stream", **length}


def _triton_answer(body: bytes) -> tuple[list[list[float] | None], list[str]]:
    header, position = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    scores, errors = np.zeros(0, np.float32), [""]
    for output in header["outputs"]:
        data = body[position : position + output["parameters"]["binary_data_size"]]
        position += len(data)
        if output["name"] == "scores":
            scores = np.frombuffer(data, np.float32).reshape(output["shape"])
        elif output["name"] == "error":
            errors = [text.decode() for text in _strings(data)]
    return [None if np.isnan(row).any() else row for row in scores.tolist()], errors


def _strings(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        yield data[start:position]


def _peer_answer(body: bytes) -> tuple[list[list[float] | None], list[str]]:
    answer = json.loads(body)
    if isinstance(answer, list):  # BentoML answers image by image
        return [each["scores"] for each in answer], [each["error"] for each in answer]
    return answer["scores"], answer["errors"]
