"""Deferred responses: a step answers its requests after Triton's call for them has returned."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from clipchoir_steps.events import Events
from clipchoir_steps.metrics import BATCH_SECONDS, Metrics

Respond = Callable[[Sequence[Any]], Sequence[Any]]
"""A batch of requests -> a response for each, or None for one that is answered elsewhere, with `send`."""


class DeferredBatches:
    """Runs a step's batches one after another in a thread of its own; Triton hands out the next batch meanwhile.

    Triton's batcher (24.10) now and then misses a request that comes while an instance computes, and looks again after
    half a second. A step that takes its batches at once is rarely busy in Triton's eyes.
    """

    def __init__(self, pb_utils: Any, step: str, metrics: Metrics, respond: Respond) -> None:
        """
        Args:
            pb_utils: Triton's module.
            step: the model's name.
            metrics: of this process.
            respond: computes a batch.
        """
        self._pb_utils = pb_utils
        self._step = step
        self._metrics = metrics
        self._respond = respond
        self._batches = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._running: Future[None] = self._batches.submit(lambda: None)
        metrics.add(BATCH_SECONDS, 0, model=step)

    def take(self, requests: Sequence[Any]) -> list[None]:
        """What the step's `execute` returns. Waits until the batch before this one is answered."""
        senders = [request.get_response_sender() for request in requests]
        wait([self._running])
        self._running = self._batches.submit(self._run, requests, senders)
        return [None] * len(requests)

    def close(self) -> None:
        """Ends when everything that was taken is answered."""
        self._batches.shutdown()

    def _run(self, requests: Sequence[Any], senders: Sequence[Any]) -> None:
        start = time.perf_counter()
        for request, sender, response in zip(requests, senders, self._responses(requests), strict=True):
            if response is not None:
                send(self._pb_utils, self._step, request, sender, response)
        # Triton's own time of computing ends when a batch is taken.
        self._metrics.add(BATCH_SECONDS, time.perf_counter() - start, model=self._step)

    def _responses(self, requests: Sequence[Any]) -> Sequence[Any]:
        try:
            responses = self._respond(requests)
            if len(responses) != len(requests):
                raise RuntimeError(f"{len(responses)} responses for {len(requests)} requests")
            return responses
        except Exception as error:
            return [failure(self._pb_utils, self._step, request, error) for request in requests]


def failure(pb_utils: Any, step: str, request: Any, error: Exception) -> Any:
    """The response to a request that failed for no fault of its own; the log has a line of it."""
    message = f"{type(error).__name__}: {error}"
    Events(pb_utils, step).error("request_failed", request_id=request.request_id(), error=message)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{step}: {message}", pb_utils.TritonError.INTERNAL))


def send(pb_utils: Any, step: str, request: Any, sender: Any, response: Any) -> None:
    """Answer a request. What cannot be sent is logged, since others wait for theirs, and a second try is impossible."""
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:
        Events(pb_utils, step).error(
            "request_unanswered",
            request_id=request.request_id(),
            error=f"{type(error).__name__}: {error}",
            advice="the client waits until it gives up; if shared memory is full, give the server more "
            "(docker run --shm-size)",
        )
