"""Steps that answer later: in order, one pass at a time, and whatever happens to one of them."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from clipchoir_steps.deferred import Later

FINAL = 1


@dataclass
class Metric:
    value: float = 0.0

    def increment(self, by: float) -> None:
        self.value += by


class Family:
    COUNTER = "counter"
    metric: Metric  # the last one made

    def __init__(self, **what: str) -> None:
        self.what = what

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802
        assert labels == {"model": "step"}
        Family.metric = Metric()
        return Family.metric


@dataclass
class Request:
    name: str
    gone: bool = False
    answers: list[Any] = field(default_factory=list)
    answered: threading.Event = field(default_factory=threading.Event)

    def get_response_sender(self) -> "Request":
        return self

    def send(self, response: Any, flags: int) -> None:
        assert flags == FINAL
        if self.gone:
            raise RuntimeError("cancelled")
        self.answers.append(response)
        self.answered.set()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def pb_utils(log: list[str]) -> SimpleNamespace:
    return SimpleNamespace(
        MetricFamily=Family,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        TritonError=str,
        InferenceResponse=lambda error: ("error", error),
        Logger=SimpleNamespace(log_warn=log.append, log_error=log.append),
    )


def names(requests: Sequence[Request]) -> list[str]:
    return [request.name for request in requests]


def test_it_takes_one_batch_while_another_is_computed(pb_utils: SimpleNamespace) -> None:
    started, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def compute(requests: Sequence[Request]) -> list[str]:
        started.release()
        assert go_on.acquire(timeout=10)
        return names(requests)

    later = Later(pb_utils, "step", compute)
    first, second, third = Request("a"), Request("b"), Request("c")
    assert later.take([first]) == [None]
    assert started.acquire(timeout=10)
    taken = threading.Thread(target=lambda: later.take([second, third]))
    taken.start()
    taken.join(0.2)
    assert taken.is_alive()  # Triton gives it no third batch
    go_on.release()
    assert first.answered.wait(10)
    taken.join(10)
    assert not taken.is_alive()
    go_on.release()
    later.close()
    assert (first.answers, second.answers, third.answers) == (["a"], ["b"], ["c"])


def test_a_pass_that_fails_answers_its_requests_and_the_next_goes_on(pb_utils: SimpleNamespace, log: list[str]) -> None:
    def compute(requests: Sequence[Request]) -> list[str]:
        if "bad" in names(requests):
            raise ValueError("no such pixels")
        return names(requests)

    later = Later(pb_utils, "step", compute)
    bad, beside, good = Request("bad"), Request("beside"), Request("good")
    later.take([bad, beside])
    later.take([good])
    later.close()
    assert bad.answers == beside.answers == [("error", "step: ValueError: no such pixels")]
    assert good.answers == ["good"]
    assert log == ["step: ValueError: no such pixels"]


def test_what_somebody_else_answers_is_left_to_them(pb_utils: SimpleNamespace, log: list[str]) -> None:
    later = Later(pb_utils, "step", lambda requests: [None, requests[1].name])
    theirs, ours = Request("theirs"), Request("ours")
    later.take([theirs, ours])
    later.close()
    assert (theirs.answers, ours.answers, log) == ([], ["ours"], [])


def test_every_request_needs_a_response(pb_utils: SimpleNamespace) -> None:
    later = Later(pb_utils, "step", lambda requests: names(requests)[1:])
    requests = [Request("a"), Request("b")]
    later.take(requests)
    later.close()
    for request in requests:
        assert request.answers == [("error", "step: RuntimeError: 1 responses for 2 requests")]


def test_the_seconds_of_the_passes_are_counted(pb_utils: SimpleNamespace) -> None:
    def compute(requests: Sequence[Request]) -> list[str]:
        time.sleep(0.05)
        return names(requests)

    later = Later(pb_utils, "step", compute)
    for name in "ab":
        later.take([Request(name)])
    later.close()
    assert 0.1 <= Family.metric.value < 5


def test_one_that_cannot_be_answered_leaves_the_others_alone(pb_utils: SimpleNamespace, log: list[str]) -> None:
    later = Later(pb_utils, "step", names)
    gone, beside = Request("gone", gone=True), Request("beside")
    later.take([gone, beside])
    later.close()
    assert beside.answers == ["beside"]
    assert len(log) == 1
    assert "a request stays unanswered until its client gives up (RuntimeError: cancelled)" in log[0]
