"""More requests than the server can answer: some are rejected at once, the others answered in time, and rightly."""

import re
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
TIMEOUTS = 3.0  # seconds: the sum of the two above
BATCH = 4
CLIENTS = 60
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
    first: int
    seconds: float
    answer: dict[str, np.ndarray] | None = None
    error: InferenceServerException | None = None


def one_client(address: Address, number: int, until: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with grpcclient.InferenceServerClient(address.grpc) as client:
        while time.monotonic() < until:
            first = (number * 7 + len(outcomes)) % len(ROWS)
            start = time.monotonic()
            outcome = Outcome(first, 0.0)
            try:
                outcome.answer = ask(client, first)
            except InferenceServerException as error:
                outcome.error = error
            outcome.seconds = time.monotonic() - start
            outcomes.append(outcome)
            time.sleep(0.02)
    return outcomes


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
        start = time.monotonic()
        for first in range(8):
            ask(client, first)
        service = (time.monotonic() - start) / 8
    until = time.monotonic() + 6
    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = pool.map(lambda number: one_client(address, number, until), range(CLIENTS))
        outcomes = [outcome for part in parts for outcome in part]

    rejected = [outcome.error for outcome in outcomes if outcome.error]
    answered = [outcome for outcome in outcomes if outcome.answer]
    assert len(rejected) + len(answered) == len(outcomes)
    assert len(outcomes) > 10 * len(answered) > 0  # ten times as many as it can answer
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
    # What was accepted waited in two queues and was computed behind one batch at each of the steps.
    bound = TIMEOUTS + 6 * (8 / BATCH) * service + 1
    assert np.percentile([outcome.seconds for outcome in answered], 99) < bound
    assert max(outcome.seconds for outcome in outcomes) < 2 * bound
    with grpcclient.InferenceServerClient(address.grpc) as client:
        ask(client, 0)  # at once, and the queues are empty
    pending = {
        name: value
        for name, value in metrics(address.metrics, "nv_inference_").items()
        if "pending_request_count" in name
    }
    assert set(pending.values()) == {0}
    assert len(pending) == 6  # one for each model
