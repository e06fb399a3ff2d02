"""Triton's own load generator, perf_analyzer: gets it, runs it, and reads what it recorded.

    python -m benchmarks.common.perf_analyzer             # gets it into build/perf_analyzer and prints its version

One on PATH, as in NVIDIA's SDK container, is taken as it is. Otherwise the program comes from the `tritonclient` wheel
of the embedded Triton's version, with the two libraries that it needs where the system has none. Every file is
fetched beside its place and renamed, so that an interrupted fetch goes on with what is missing.
"""

import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.perf_input import element

ROOT = Path(__file__).parents[2]

FOLDER = ROOT / "build" / "perf_analyzer"
PROGRAM = "perf_analyzer"
WHEEL = "tritonclient==2.51.0"  # later wheels hold no program that runs on glibc before 2.38
CUDA_RUNTIME, CUDA_WHEEL = "libcudart.so.12", "nvidia-cuda-runtime-cu12==12.9.79"  # linked against; no GPU is needed
BASE64, BASE64_PACKAGE = "libb64.so.0d", "libb64-0d"
_ELSE = "put a perf_analyzer on PATH, such as the one of NVIDIA's Triton SDK container (tritonserver:<xx.yy>-py3-sdk)"
_FETCH_TIMEOUT = 600.0  # seconds
_SHOWN = 15  # last lines of a program that failed


class PerfAnalyzerError(Exception):
    """perf_analyzer is of no use; the message says what to do."""


class MissingError(PerfAnalyzerError):
    """It is not here and cannot be fetched."""


class FailedError(PerfAnalyzerError):
    """It ran and failed, or recorded something else than was asked for."""


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: host:port of the server's gRPC endpoint.
        model: its name. All of its outputs are asked for: perf_analyzer cannot do otherwise.
        batch_size: rows per request.
        concurrency: requests in flight.
        input_data: JSON file as `write_input_data` makes it; a batch takes the next rows, over and over.
        rate: requests per second at random times (Poisson), however many that puts in flight; 0: `concurrency` counts.
        label_set: the request parameter, a name or an id; empty: none is sent.
    """

    url: str
    model: str
    batch_size: int
    concurrency: int
    input_data: Path
    rate: float = 0.0
    label_set: str = ""


@dataclass(frozen=True)
class Measurement:
    """Of the requests of one run, the first and the last ones included.

    Attributes:
        throughput: rows per second, from the first request sent to the last answer.
        steady: the same while every place in flight is filled, without the first and the last answers. Equal to
            `throughput` for a Poisson load.
        p50, p90, p99: latency of requests, seconds.
        requests: how many.
        cpu_seconds: user and system time of the process, its start and its report included.
    """

    throughput: float
    steady: float
    p50: float
    p90: float
    p99: float
    requests: int
    cpu_seconds: float


class PerfAnalyzer:
    """The program."""

    def __init__(self, program: Path, libraries: Path | None = None) -> None:
        """
        Args:
            program: its path.
            libraries: folder of those that the system lacks.
        """
        self._program = program
        self._environment = dict(os.environ)
        if libraries is not None:
            inherited = [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
            self._environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(libraries), *inherited])

    def version(self) -> str:
        """As it says it.

        Raises:
            MissingError: it does not start.
        """
        try:
            trial = self._run(["--version"])
        except OSError as error:
            raise MissingError(f"{self._program} does not start: {error.strerror}\nTo go on, {_ELSE}") from error
        words = (trial.stdout + trial.stderr).split()
        if "Version" not in words[:-1]:  # the exit code is that of a failure in any case
            raise MissingError(f"{self._program} does not start: {_last_lines(trial)}\nTo go on, {_ELSE}")
        return words[words.index("Version") + 1]

    def measure(self, load: Load, requests: int) -> Measurement:
        """Send so many requests and wait for the answers.

        Throughput and latencies are computed from the recorded time of every request. The figures that perf_analyzer
        derives itself are of a window that begins up to a second beside the first request and ends up to a second
        after the last answer.

        Args:
            load: what to send.
            requests: a multiple of the concurrency: each thread sends its share.

        Raises:
            FailedError: a request failed, or the server does not answer.
        """
        with tempfile.TemporaryDirectory(prefix="perf_analyzer-") as scratch:
            record = Path(scratch) / "record.json"
            options: dict[str, object] = {
                "-m": load.model,
                "-u": load.url,
                "-i": "grpc",
                "-b": load.batch_size,
                "--input-data": load.input_data,
                "--request-count": requests,
                "--profile-export-file": record,
            }
            if load.rate:
                options |= {"--request-rate-range": load.rate, "--request-distribution": "poisson"}
            else:
                options["--concurrency-range"] = load.concurrency
            if load.label_set:
                options["--request-parameter"] = f"label_set:{load.label_set}:string"
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = self._run([str(part) for option in options.items() for part in option])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode or not record.is_file():
                raise FailedError(f"perf_analyzer failed on {load.model} at {load.url}: {_last_lines(done)}")
            starts, ends = _times(record)
        if len(starts) != requests:
            raise FailedError(f"perf_analyzer recorded {len(starts)} requests to {load.model} instead of {requests}")
        p50, p90, p99 = np.percentile(ends - starts, (50, 90, 99)) / 1e9
        throughput = requests * load.batch_size / float(ends.max() - starts.min()) * 1e9
        return Measurement(
            throughput,
            throughput if load.rate else _steady(starts, ends, load.concurrency) * load.batch_size,
            float(p50),
            float(p90),
            float(p99),
            requests,
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        )

    def requests_for(self, load: Load, seconds: float, rounds: int = 3) -> int:
        """How many requests take about so many seconds, found by sending more and more: the first ones are slow.

        Args:
            load: what to send.
            seconds: that a measurement should take.
            rounds: requests per place in flight at least, however long they take.
        """
        requests, taken = load.concurrency, 0.0
        while taken == 0 or taken < seconds / 4:
            requests *= 4 if taken else 1
            taken = requests * load.batch_size / self.measure(load, requests).throughput
        return load.concurrency * max(rounds, round(requests * seconds / taken / load.concurrency))

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def write_input_data(images: Sequence[bytes], path: Path) -> Path:
    """Encoded images -> the file of a `Load`."""
    path.write_text(json.dumps({"data": [element(image) for image in images]}))
    return path


def get(folder: Path = FOLDER) -> PerfAnalyzer:
    """The program on PATH, or the one in the folder, fetched if need be.

    Raises:
        MissingError: there is none; the message says what to do.
    """
    with contextlib.suppress(MissingError):
        return _on_path()
    fetched = PerfAnalyzer(folder / "bin" / PROGRAM, folder / "lib")
    try:
        fetched.version()
    except MissingError:
        _fetch(folder)
        fetched.version()
    return fetched


def _on_path() -> PerfAnalyzer:
    found = shutil.which(PROGRAM)
    if found is None:
        raise MissingError("perf_analyzer is not on PATH")
    program = PerfAnalyzer(Path(found))
    program.version()
    return program


def _fetch(folder: Path) -> None:
    parts: dict[Path, Callable[[Path], Path]] = {folder / "bin" / PROGRAM: _program_of_wheel}
    if not _is_loadable(CUDA_RUNTIME):
        parts[folder / "lib" / CUDA_RUNTIME] = _cuda_runtime_of_wheel
    if not _is_loadable(BASE64):
        parts[folder / "lib" / BASE64] = _base64_of_package
    for path, fetch in parts.items():
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {path.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
            found = fetch(Path(scratch))
            if not found.is_file():
                raise MissingError(f"{path.name} is not where it was expected, {found.relative_to(scratch)}; {_ELSE}")
            found.resolve().replace(path)


def _program_of_wheel(scratch: Path) -> Path:
    return _wheel(WHEEL, scratch) / "bin" / PROGRAM


def _cuda_runtime_of_wheel(scratch: Path) -> Path:
    return _wheel(CUDA_WHEEL, scratch) / "nvidia" / "cuda_runtime" / "lib" / CUDA_RUNTIME


def _wheel(requirement: str, scratch: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(scratch), requirement]
    _call(
        command, scratch, f"pip cannot install {requirement}", f"see to pip's access to its package index, or {_ELSE}"
    )
    return scratch


def _base64_of_package(scratch: Path) -> Path:
    what = f"perf_analyzer needs {BASE64}, and the Debian package {BASE64_PACKAGE} cannot be fetched"
    advice = f"install it (Debian and Ubuntu: apt-get update && apt-get install {BASE64_PACKAGE}), or {_ELSE}"
    _call(["apt-get", "download", BASE64_PACKAGE], scratch, what, advice)
    packages = list(scratch.glob("*.deb"))
    if not packages:
        raise MissingError(f"{what}: apt-get left no file; {advice}")
    _call(["dpkg-deb", "-x", str(packages[0]), str(scratch)], scratch, what, advice)
    return next(scratch.rglob(BASE64), scratch / BASE64)


def _call(command: Sequence[str], folder: Path, what: str, advice: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_TIMEOUT, errors="replace", check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{what}: {error}\nTo go on, {advice}") from error
    if done.returncode:
        raise MissingError(f"{what}: {_last_lines(done)}\nTo go on, {advice}")


def _is_loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _times(record: Path) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds at which each request was sent and answered, (N,) each.

    The record holds every input and output too, and the bytes of images in it are written as they are: it is JSON, but
    not in UTF-8.
    """
    content = json.loads(record.read_bytes().decode("latin-1"), strict=False)
    requests = [request for experiment in content["experiments"] for request in experiment["requests"]]
    starts = np.array([request["timestamp"] for request in requests], np.int64)
    return starts, np.array([request["response_timestamps"][-1] for request in requests], np.int64)


def _steady(starts: np.ndarray, ends: np.ndarray, concurrency: int) -> float:
    """Answers per second between the last one to the first requests and the last request sent, or all in all."""
    first, last = np.sort(ends)[concurrency - 1], starts.max()
    if last <= first:
        return len(starts) / float(ends.max() - starts.min()) * 1e9
    return int(np.count_nonzero((ends > first) & (ends <= last))) / float(last - first) * 1e9


def _last_lines(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return "\n".join(lines[-_SHOWN:]) or f"exit code {done.returncode}, without a word"


if __name__ == "__main__":
    try:
        print(f"perf_analyzer {get().version()}")
    except PerfAnalyzerError as error:
        sys.exit(str(error))
