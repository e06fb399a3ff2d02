"""Answers a step's requests after Triton's call for them has returned."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


class Later:
    """Runs a step's passes one after another in a thread of its own; Triton hands out the next batch meanwhile.

    Triton's batcher (24.10) now and then misses a request that comes while an instance computes, and looks again after
    half a second. A step that takes its batches at once is rarely busy in Triton's eyes.
    """

    def __init__(self, pb_utils: Any, step: str, answer: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        """
        Args:
            pb_utils: Triton's module.
            step: the model's name.
            answer: makes a response for each request of a batch, or None for one that somebody else answers.
        """
        self._pb_utils = pb_utils
        self._step = step
        self._answer = answer
        self._passes = ThreadPoolExecutor(1, thread_name_prefix="passes")
        self._running: Future[None] = self._passes.submit(lambda: None)
        # Triton's own time of computing ends when a batch is taken.
        self._family = pb_utils.MetricFamily(  # its metrics need it alive
            name="clipchoir_pass_seconds_total",
            description="Seconds of the passes of a step that answers later.",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._seconds = self._family.Metric(labels={"model": step})

    def take(self, requests: Sequence[Any]) -> list[None]:
        """What the step's `execute` returns. Waits until the batch before this one is answered."""
        senders = [request.get_response_sender() for request in requests]
        wait([self._running])
        self._running = self._passes.submit(self._pass, requests, senders)
        return [None] * len(requests)

    def close(self) -> None:
        """Ends when everything that was taken is answered."""
        self._passes.shutdown()

    def _pass(self, requests: Sequence[Any], senders: Sequence[Any]) -> None:
        start = time.perf_counter()
        for sender, response in zip(senders, self._responses(requests), strict=True):
            if response is not None:
                send(self._pb_utils, self._step, sender, response)
        self._seconds.increment(time.perf_counter() - start)

    def _responses(self, requests: Sequence[Any]) -> Sequence[Any]:
        try:
            responses = self._answer(requests)
            if len(responses) != len(requests):
                raise RuntimeError(f"{len(responses)} responses for {len(requests)} requests")
            return responses
        except Exception as error:
            message = f"{self._step}: {type(error).__name__}: {error}"
            self._pb_utils.Logger.log_error(message)
            return [self._pb_utils.InferenceResponse(error=self._pb_utils.TritonError(message)) for _ in requests]


def send(pb_utils: Any, step: str, sender: Any, response: Any) -> None:
    """Answer a request. What cannot be sent is logged, since others wait for theirs, and a second try is impossible."""
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:
        pb_utils.Logger.log_error(
            f"{step}: a request stays unanswered until its client gives up ({type(error).__name__}: {error}); if "
            "shared memory is full, give the server more (docker run --shm-size)"
        )
