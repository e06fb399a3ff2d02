"""Requests with retries, whichever server answers them."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import tritonclient.grpc as grpcclient
from tenacity import RetryCallState, Retrying, wait_random_exponential
from tenacity.retry import retry_if_exception

from clipchoir._balancer import Balancer
from clipchoir._connection import Connection, ConnectionOptions
from clipchoir._label_set import LabelSet
from clipchoir._protocol import Service
from clipchoir.errors import (
    ClipchoirError,
    OverloadedError,
    ServerFailedError,
    TimedOutError,
    UnknownLabelSetError,
    UnreachableError,
)

_TRIED_AGAIN = 2  # times, after a failure that may be the request's own fault: a time-out, or an error of the server
_BACKOFF = wait_random_exponential(multiplier=0.2, max=5)  # seconds, "full jitter": clients do not come back together

T = TypeVar("T")


class RetryingClient:
    """Sends requests. Safe to use from several threads.

    Every request here only asks and changes nothing, so that it is safe to send it again. One that no server could
    take is tried again, elsewhere at once or after a pause, until `patience` seconds have passed; one that timed out or
    made the server fail, twice more. One that was refused is not.
    """

    def __init__(self, urls: Sequence[str], options: ConnectionOptions) -> None:
        """
        Args:
            urls: host:port of each server.
            options: of the connections.
        """
        self.balancer = Balancer(urls, options)
        self._patience = options.patience
        self._closing = threading.Event()
        self._service: Service | None = None
        self._asking = threading.Lock()

    def stop_trying(self) -> None:
        """Try nothing again from now on."""
        self._closing.set()

    def close(self) -> None:
        self.stop_trying()
        self.balancer.close()

    def service(self) -> Service:
        """What the first server that answers says of itself. It is asked once: a wrong URL shows without a delay.

        Raises:
            ClipchoirError: no server answers.
        """
        with self._asking:
            if self._service is None:
                self._service = self.ask_any(Service.of)
            return self._service

    def ask_any(self, question: Callable[[Connection], T]) -> T:
        """Ask one server after the other until one answers.

        Raises:
            ClipchoirError: of the last one.
        """
        failures: list[ClipchoirError] = []
        for connection in self.balancer.connections:
            try:
                return question(connection)
            except (UnreachableError, OverloadedError, TimedOutError) as error:
                failures.append(error)
        if len(failures) > 1:
            raise UnreachableError("; ".join(map(str, failures))) from failures[-1]
        raise failures[0]

    def services(self) -> dict[str, Service]:
        """What each server says of itself now, by URL. One that does not answer is left out, as one that is down."""
        found = {}
        for connection in self.balancer.in_use():
            with contextlib.suppress(UnreachableError, OverloadedError, TimedOutError):
                found[connection.url] = Service.of(connection)
        return found

    def infer(
        self,
        model: str,
        inputs: list[grpcclient.InferInput],
        outputs: Sequence[str],
        parameters: dict[str, str],
        label_set: LabelSet | None = None,
    ) -> tuple[grpcclient.InferResult, str]:
        """One request, and the URL of the server that answered it.

        Args:
            model: its name.
            inputs: its tensors.
            outputs: names of those that are wanted.
            parameters: of the request.
            label_set: sent along where the server does not know it.

        Raises:
            ClipchoirError: of the kind that fits; the last one after several trials.
        """

        def attempt() -> tuple[grpcclient.InferResult, str]:
            with self.balancer.turn() as connection:
                return _infer(connection, model, inputs, outputs, parameters, label_set), connection.url

        return self._trying(attempt)

    def _sleep(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _trying(self, attempt: Callable[[], T]) -> T:
        failures = 0
        since: float | None = None  # when no server began to take the request

        def is_worth_it(error: BaseException) -> bool:
            nonlocal failures
            if self._closing.is_set() or self._patience == 0:
                return False
            if isinstance(error, TimedOutError | ServerFailedError):
                failures += 1
                return failures <= _TRIED_AGAIN
            return isinstance(error, UnreachableError | OverloadedError)

        def is_enough(state: RetryCallState) -> bool:
            nonlocal since
            if not isinstance(_error(state), UnreachableError | OverloadedError):
                since = None
                return False
            since = since or time.monotonic()
            return time.monotonic() - since >= self._patience

        def pause(state: RetryCallState) -> float:
            error = _error(state)
            if isinstance(error, UnreachableError) and self.balancer.others_are_up():
                return 0.0
            return _BACKOFF(state)

        return Retrying(
            retry=retry_if_exception(is_worth_it),
            wait=pause,
            stop=is_enough,
            sleep=self._sleep,
            reraise=True,
        )(attempt)


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _infer(
    connection: Connection,
    model: str,
    inputs: list[grpcclient.InferInput],
    outputs: Sequence[str],
    parameters: dict[str, str],
    label_set: LabelSet | None,
) -> grpcclient.InferResult:
    sent = connection.sent_label_sets
    named = sent.parameters(label_set, parameters)
    try:
        answer = connection.infer(model, inputs, outputs, named)
    except UnknownLabelSetError:
        if label_set is None or "label_set_spec" in named:
            raise
        sent.forgotten(label_set)
        answer = connection.infer(model, inputs, outputs, {**parameters, "label_set_spec": label_set.spec})
    sent.add(label_set)
    return answer
