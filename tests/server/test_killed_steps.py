"""A step's process is killed under load: requests end in errors, the server comes back, and knows what it knew."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir_server.stubs import stubs_of
from tests.conftest import encoded, metrics, noise
from tests.support.launcher import Launched, descendants, launched
from tests.support.traffic import CHANNEL, OUTPUTS, PETS, Answer, Profile, ask, set_id

CLIENTS = 8
DEADLINE = 40.0  # seconds; a request that reaches it has hung
BACK_WITHIN = 60.0  # seconds; about 6 on a machine of one's own
ROWS = [encoded(noise(seed), "JPEG") for seed in range(4)]
PROFILES = (Profile(), Profile({"label_set": set_id(PETS)}), Profile({"weights": "3,1", "label_set": set_id(PETS)}))


@dataclass
class Outcomes:
    """What one client has seen."""

    right: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    slowest: float = 0.0


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """It forgets its restarts at once, so that none has to wait."""
    with launched(repository, tmp_path_factory.mktemp("killed"), "--restart-window", "0") as launched_server:
        with connected(launched_server) as client:
            ask(client, ROWS, OUTPUTS, {"label_set_spec": PETS})
        assert prompts_embedded(launched_server) > 0  # so that it can tell
        yield launched_server


@pytest.fixture(scope="module")
def alone(server: Launched) -> list[Answer]:
    """By profile."""
    with connected(server) as client:
        return [ask(client, ROWS, OUTPUTS, profile.options) for profile in PROFILES]


def connected(server: Launched) -> grpcclient.InferenceServerClient:
    return grpcclient.InferenceServerClient(server.grpc, channel_args=CHANNEL)


def stub(server: Launched, model: str) -> int:
    (pid,) = (stub.pid for pid in descendants(server.process.pid) for stub in stubs_of(pid) if stub.model == model)
    return pid


def same(answer: Answer, expected: Answer) -> bool:
    return all(
        (answer[name] == expected[name]).all()
        if answer[name].dtype == np.object_
        else np.allclose(answer[name], expected[name], rtol=0, atol=1e-5)
        for name in OUTPUTS
    )


def one_client(server: Launched, alone: list[Answer], outcomes: Outcomes, number: int, stop: Event) -> None:
    with connected(server) as client:
        while not stop.is_set():
            profile = (number + outcomes.right) % len(PROFILES)
            sent = time.monotonic()
            try:
                answer = ask(client, ROWS, OUTPUTS, PROFILES[profile].options, deadline=DEADLINE)
            except InferenceServerException as error:
                outcomes.errors.append(str(error.status()).removeprefix("StatusCode."))
                time.sleep(0.05)
            else:
                right = same(answer, alone[profile])
                outcomes.right += right
                outcomes.wrong += not right
            outcomes.slowest = max(outcomes.slowest, time.monotonic() - sent)


def prompts_embedded(server: Launched) -> float:
    return metrics(server.metrics, "clipchoir_")["clipchoir_prompts_embedded_total"]


def until(condition: Callable[[], bool], server: Launched) -> None:
    deadline = time.monotonic() + BACK_WITHIN
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {BACK_WITHIN:g} s:\n{server.log.read_text()}")


@pytest.mark.parametrize("step", ["preprocess", "metaclip", "ensembling", "label_sets"])
def test_a_step_killed_under_load_costs_errors_and_no_answer_is_wrong_or_lost(
    server: Launched, alone: list[Answer], step: str
) -> None:
    before, stop = len(server.deaths()), Event()
    pid = stub(server, step)
    outcomes = [Outcomes() for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        working = [threads.submit(one_client, server, alone, each, n, stop) for n, each in enumerate(outcomes)]
        try:
            until(lambda: all(each.right for each in outcomes), server)
            os.kill(pid, signal.SIGKILL)
            until(lambda: server.log.read_text().count("event=restarted") == before + 1, server)
            answered = [each.right for each in outcomes]
            until(lambda: all(each.right > n for each, n in zip(outcomes, answered, strict=True)), server)
        finally:
            stop.set()
    for each in working:
        each.result()

    assert server.deaths()[before:] == [f"event=step_died step={step} pid={pid} action=restart restart=1 of=5 wait=0"]
    errors = {error for each in outcomes for error in each.errors}
    assert all(each.errors for each in outcomes)  # the whole server is started again
    assert errors <= {"UNAVAILABLE", "INTERNAL"}  # none reached its deadline
    assert max(each.slowest for each in outcomes) < DEADLINE
    assert sum(each.wrong for each in outcomes) == 0
    with connected(server) as client:  # by its id: the set is found in the cache's files
        for profile, expected in zip(PROFILES, alone, strict=True):
            assert same(ask(client, ROWS, OUTPUTS, profile.options), expected)
    assert prompts_embedded(server) == 0
