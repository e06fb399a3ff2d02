"""More requests than the server can answer: some are rejected at once, the others answered in time, and rightly."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.utils import InferenceServerException

from clipchoir.errors import OverloadedError, from_triton
from clipchoir_server.triton import Address, serving
from tests.conftest import encoded, infer, metrics, noise, run

SERVING = """
[serving]
max_batch_size = 8
preprocess_queue_size = 4
preprocess_timeout_ms = 1000
encoder_timeout_ms = 2000
"""
BATCH = 4
CLIENTS = 60
TIMES = 10  # as many requests as the server can answer
ANSWERS = 40
# Requests that may be answered while one waits: `preprocess` takes 4 into its queue; it and the steps behind it work on
# up to 2 (8 rows) each, with 2 taken already, and as many may lie between two steps.
MOST_BEFORE = 4 + 3 * 2 * 4
GIVE_UP = 120.0  # seconds, of the whole overload
# Small files that take long to decode: sending one costs the clients, which share the server's cores, next to nothing,
# and `preprocess`, whose queue is the short one, is the slowest step.
ROWS = [encoded(noise(seed, (40, 30)).resize((2400, 1600), Image.Resampling.NEAREST)) for seed in range(16)]
OUTPUTS = ["scores", "metaclip_embedding", "evaclip_embedding", "error"]


@dataclass(frozen=True)
class Served:
    address: Address
    fresh: dict[str, float]  # the metrics before the first request


@pytest.fixture(scope="module")
def served(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose queues are short."""
    folder = tmp_path_factory.mktemp("overload")
    (folder / "ensembles").mkdir()
    (folder / "label_sets").symlink_to(spec.parent.parent / "label_sets")
    path = folder / "ensembles" / "short.toml"
    path.write_text(spec.read_text() + SERVING)
    built = run("clipchoir-export", "build", path, "--repository", folder / "short", "--verify", "off")
    assert built.returncode == 0, built.stderr
    with serving(folder / "short", Address.choose()) as triton:
        yield Served(triton.address, metrics(triton.address.metrics, "nv_inference_"))
        triton.stop(patience=0)  # it would wait for requests that it has rejected, see docs/serving.md


def ask(client: grpcclient.InferenceServerClient, first: int) -> dict[str, np.ndarray]:
    """A batch of the pictures, from one of them on."""
    return infer(client, [ROWS[(first + offset) % len(ROWS)] for offset in range(BATCH)], OUTPUTS)


@dataclass
class Outcome:
    """What became of a request.

    Attributes:
        first: of its images.
        before: how many other requests were answered while it waited.
    """

    first: int
    before: int = 0
    answer: dict[str, np.ndarray] | None = None
    error: InferenceServerException | None = None


class Overload:
    """Clients that send until many more requests have come back than were answered."""

    def __init__(self, address: Address) -> None:
        self.outcomes: list[Outcome] = []
        self._address = address
        self._answered = 0
        self._lock = threading.Lock()
        self._give_up = time.monotonic() + GIVE_UP

    def one_client(self, number: int) -> None:
        with grpcclient.InferenceServerClient(self._address.grpc) as client:
            while self._goes_on():
                outcome = Outcome((number * 7 + len(self.outcomes)) % len(ROWS))
                answered = self._answered
                try:
                    outcome.answer = ask(client, outcome.first)
                except InferenceServerException as error:
                    outcome.error = error
                with self._lock:
                    outcome.before = self._answered - answered
                    self._answered += outcome.answer is not None
                    self.outcomes.append(outcome)
                time.sleep(0.02)

    def _goes_on(self) -> bool:
        is_enough = self._answered >= ANSWERS and len(self.outcomes) > TIMES * self._answered
        return not is_enough and time.monotonic() < self._give_up


def test_warm_up_does_not_count_in_the_metrics(served: Served) -> None:
    counts = {
        name: value for name, value in served.fresh.items() if re.match("nv_inference_(count|exec|request)", name)
    }
    assert len(counts) >= 5 * 4
    assert set(counts.values()) == {0}


def test_an_overloaded_server_rejects_in_time_and_answers_the_rest_rightly(served: Served) -> None:
    address = served.address
    with grpcclient.InferenceServerClient(address.grpc) as client:
        alone = [ask(client, first) for first in range(len(ROWS))]
    overload = Overload(address)
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(overload.one_client, range(CLIENTS)))
    outcomes = overload.outcomes

    rejected = [outcome.error for outcome in outcomes if outcome.error]
    answered = [outcome for outcome in outcomes if outcome.answer]
    assert len(rejected) + len(answered) == len(outcomes)
    assert len(outcomes) > TIMES * len(answered) >= TIMES * ANSWERS
    for error in rejected:
        assert error.status() == "StatusCode.UNAVAILABLE", error
        assert re.search("Exceeds maximum queue size|Request timeout expired", error.message())
        assert isinstance(from_triton(error, "here", 60), OverloadedError)
    for outcome in answered:
        assert outcome.answer
        for name, expected in alone[outcome.first].items():
            if name == "error":
                assert (outcome.answer[name] == expected).all()
            else:
                np.testing.assert_allclose(outcome.answer[name], expected, atol=1e-4)
    # What was accepted waited in two short queues, and what was rejected did not wait for longer.
    assert max(outcome.before for outcome in outcomes) <= MOST_BEFORE
    with grpcclient.InferenceServerClient(address.grpc) as client:
        ask(client, 0)  # at once, and the queues are empty
    pending = {
        name: value
        for name, value in metrics(address.metrics, "nv_inference_").items()
        if "pending_request_count" in name
    }
    assert set(pending.values()) == {0}
    assert len(pending) == 6  # one for each model
