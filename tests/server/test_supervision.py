"""Dead processes: noticed, told, and replaced by a new server, but not for ever."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir_server import supervision
from clipchoir_server.stubs import stubs_of
from clipchoir_server.supervision import RestartLimit, keep_serving
from clipchoir_server.triton import DiedError, ServerError
from tests.conftest import encoded, infer, noise
from tests.support.launcher import descendants, gone, started

ROW = encoded(noise(0))
BACK_WITHIN = 60.0  # seconds; about 5 on a machine of one's own


def tritonserver(launcher: subprocess.Popen[str]) -> int:
    (pid,) = (
        pid
        for pid in descendants(launcher.pid)
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/tritonserver")
    )
    return pid


def stub(launcher: subprocess.Popen[str], model: str) -> int:
    return next(stub.pid for stub in stubs_of(tritonserver(launcher)) if stub.model == model)


def wait_for_an_answer(client: grpcclient.InferenceServerClient) -> None:
    """What a client that retries sees: errors, none of which takes long, then answers."""
    start = time.monotonic()
    while time.monotonic() - start < BACK_WITHIN:
        sent = time.monotonic()
        try:
            infer(client, [ROW], ["error"])
        except InferenceServerException:
            assert time.monotonic() - sent < BACK_WITHIN / 2
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"no answer within {BACK_WITHIN:g} s")


def wait_for_an_error(client: grpcclient.InferenceServerClient) -> None:
    with contextlib.suppress(InferenceServerException):
        for _ in range(1000):
            infer(client, [ROW], ["error"])
        raise AssertionError("the server still answers")


def events(launcher: subprocess.Popen[str]) -> list[str]:
    """The lines that it has printed about deaths, once it has ended."""
    assert launcher.stderr is not None
    return [line.strip() for line in launcher.stderr if line.startswith("clipchoir-server event=")]


def test_a_killed_step_gives_errors_and_the_server_comes_back_on_its_ports(repository: Path) -> None:
    with started(repository) as (launcher, address), grpcclient.InferenceServerClient(address) as client:
        infer(client, [ROW], ["error"])
        before, pid = descendants(launcher.pid), stub(launcher, "preprocess")
        os.kill(pid, signal.SIGKILL)
        wait_for_an_error(client)
        wait_for_an_answer(client)
        assert gone(before)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(30) == 0
        died, restarted = events(launcher)
    assert died == (f"clipchoir-server event=step_died step=preprocess pid={pid} action=restart restart=1 of=5 wait=0")
    assert re.fullmatch(r"clipchoir-server event=restarted seconds=\d+\.\d", restarted)


def test_a_killed_step_ends_the_launcher_where_it_shall_exit(repository: Path) -> None:
    with started(repository, "--on-dead-step", "exit") as (launcher, _):
        below, pid = descendants(launcher.pid), stub(launcher, "metaclip")
        os.kill(pid, signal.SIGKILL)
        assert launcher.wait(20) == 1
        assert gone(below)
        assert launcher.stderr is not None
        assert launcher.stderr.read().splitlines()[-2:] == [
            f"clipchoir-server event=step_died step=metaclip pid={pid} action=exit restarts=0",
            f"error: the process {pid} of the step metaclip has died",
        ]


def test_a_crashed_tritonserver_is_started_again_until_it_crashes_too_often(repository: Path) -> None:
    with started(repository, "--restarts", "1") as (launcher, address):
        with grpcclient.InferenceServerClient(address) as client:
            os.kill(tritonserver(launcher), signal.SIGSEGV)
            wait_for_an_error(client)
            wait_for_an_answer(client)
        assert launcher.stdout is not None
        assert launcher.stdout.readline().startswith("serving ")
        below = descendants(launcher.pid)
        os.kill(stub(launcher, "ensembling"), signal.SIGKILL)
        assert launcher.wait(20) == 1
        assert gone(below)
        crashed, _, died = events(launcher)
    assert re.search(r"event=server_died pid=\d+ exit_code=-11 action=restart restart=1 of=1 wait=0$", crashed)
    assert re.search(r"event=step_died step=ensembling pid=\d+ action=exit restarts=1$", died)


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Fragile:
    """A server that lives for given times; None: it does not even start."""

    def __init__(self, clock: Clock, *lives: float | None) -> None:
        self.clock = clock
        self.lives = iter(lives)

    @contextlib.contextmanager
    def __call__(self) -> Iterator["Fragile"]:
        life = next(self.lives)
        if life is None:
            raise ServerError("model metaclip: no\nway")
        self.life = life
        yield self

    def wait(self) -> None:
        self.clock.sleep(self.life)
        raise DiedError("dead", event="step_died", step="metaclip", pid=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervision, "time", clock)
    return clock


def lines_of(serve: Fragile, most: int) -> list[str]:
    lines: list[str] = []
    with pytest.raises(ServerError):
        keep_serving(serve, RestartLimit(most, 600), lambda: None, lines.append)  # type: ignore[arg-type]
    return [line.partition("event=")[2] for line in lines]


def test_each_restart_waits_longer_than_the_one_before(clock: Clock) -> None:
    lines = lines_of(Fragile(clock, *[1.0] * 8), most=7)
    assert [int(wait) for line in lines for wait in re.findall(r"wait=(\d+)", line)] == [0, 1, 2, 4, 8, 16, 30]
    assert lines[-1] == "step_died step=metaclip pid=1 action=exit restarts=7"


def test_restarts_of_long_ago_do_not_count(clock: Clock) -> None:
    lines = lines_of(Fragile(clock, *[700.0] * 20, 1.0, 1.0), most=2)
    assert sum("action=restart" in line for line in lines) == 21
    assert lines[-1].endswith("action=exit restarts=2")


def test_a_server_that_does_not_come_back_counts_like_one_that_dies(clock: Clock) -> None:
    assert lines_of(Fragile(clock, 5.0, None, 5.0, None), most=2) == [
        "step_died step=metaclip pid=1 action=restart restart=1 of=2 wait=0",
        r'start_failed reason="model metaclip: no\nway" action=restart restart=2 of=2 wait=1',
        "restarted seconds=1.0",
        "step_died step=metaclip pid=1 action=exit restarts=2",
    ]


def test_a_server_that_never_was_up_is_not_started_again(clock: Clock) -> None:
    assert lines_of(Fragile(clock, None), most=5) == []
