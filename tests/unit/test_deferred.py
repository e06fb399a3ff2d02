"""Steps that answer later: in order, one pass at a time, and whatever happens to one of them."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from clipchoir_steps.deferred import DeferredBatches
from clipchoir_steps.metrics import Metrics

FINAL = 1


@dataclass
class Metric:
    value: float = 0.0

    def increment(self, by: float) -> None:
        self.value += by


class Family:
    COUNTER = GAUGE = "counter"
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

    def request_id(self) -> str:
        return f"id of {self.name}"

    def send(self, response: Any, flags: int) -> None:
        assert flags == FINAL
        if self.gone:
            raise RuntimeError("cancelled")
        self.answers.append(response)
        self.answered.set()


class TritonError(str):
    INTERNAL = "internal"

    def __new__(cls, message: str, code: str) -> "TritonError":
        assert code == cls.INTERNAL
        return super().__new__(cls, message)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def pb_utils(log: list[str]) -> SimpleNamespace:
    return SimpleNamespace(
        MetricFamily=Family,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        TritonError=TritonError,
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

    batches = DeferredBatches(pb_utils, "step", Metrics(pb_utils), compute)
    first, second, third = Request("a"), Request("b"), Request("c")
    assert batches.take([first]) == [None]
    assert started.acquire(timeout=10)
    taken = threading.Thread(target=lambda: batches.take([second, third]))
    taken.start()
    taken.join(0.2)
    assert taken.is_alive()  # Triton gives it no third batch
    go_on.release()
    assert first.answered.wait(10)
    taken.join(10)
    assert not taken.is_alive()
    go_on.release()
    batches.close()
    assert (first.answers, second.answers, third.answers) == (["a"], ["b"], ["c"])


def test_a_pass_that_fails_answers_its_requests_and_the_next_goes_on(pb_utils: SimpleNamespace, log: list[str]) -> None:
    def compute(requests: Sequence[Request]) -> list[str]:
        if "bad" in names(requests):
            raise ValueError("no such pixels")
        return names(requests)

    batches = DeferredBatches(pb_utils, "step", Metrics(pb_utils), compute)
    bad, beside, good = Request("bad"), Request("beside"), Request("good")
    batches.take([bad, beside])
    batches.take([good])
    batches.close()
    assert bad.answers == beside.answers == [("error", "step: ValueError: no such pixels")]
    assert good.answers == ["good"]
    error = "ValueError: no such pixels"
    assert [json.loads(line) for line in log] == [
        {"event": "request_failed", "step": "step", "request_id": f"id of {name}", "error": error}
        for name in ("bad", "beside")
    ]


def test_what_somebody_else_answers_is_left_to_them(pb_utils: SimpleNamespace, log: list[str]) -> None:
    batches = DeferredBatches(pb_utils, "step", Metrics(pb_utils), lambda requests: [None, requests[1].name])
    theirs, ours = Request("theirs"), Request("ours")
    batches.take([theirs, ours])
    batches.close()
    assert (theirs.answers, ours.answers, log) == ([], ["ours"], [])


def test_every_request_needs_a_response(pb_utils: SimpleNamespace) -> None:
    batches = DeferredBatches(pb_utils, "step", Metrics(pb_utils), lambda requests: names(requests)[1:])
    requests = [Request("a"), Request("b")]
    batches.take(requests)
    batches.close()
    for request in requests:
        assert request.answers == [("error", "step: RuntimeError: 1 responses for 2 requests")]


def test_the_seconds_of_the_passes_are_counted(pb_utils: SimpleNamespace) -> None:
    def compute(requests: Sequence[Request]) -> list[str]:
        time.sleep(0.05)
        return names(requests)

    batches = DeferredBatches(pb_utils, "step", Metrics(pb_utils), compute)
    for name in "ab":
        batches.take([Request(name)])
    batches.close()
    assert 0.1 <= Family.metric.value < 5


def test_one_that_cannot_be_answered_leaves_the_others_alone(pb_utils: SimpleNamespace, log: list[str]) -> None:
    batches = DeferredBatches(pb_utils, "step", Metrics(pb_utils), names)
    gone, beside = Request("gone", gone=True), Request("beside")
    batches.take([gone, beside])
    batches.close()
    assert beside.answers == ["beside"]
    assert len(log) == 1
    event = json.loads(log[0])
    assert (event["event"], event["request_id"]) == ("request_unanswered", "id of gone")
    assert event["error"] == "RuntimeError: cancelled"
