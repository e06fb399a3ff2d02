"""What the clients with and without an event loop have in common: everything but the way they iterate."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from clipchoir._connection import ConnectionKeywords, ConnectionOptions
from clipchoir._options import Options, split
from clipchoir._pipeline import Job, Pipeline, classification, embedding, rows_of
from clipchoir._protocol import LABEL_SETS_MODEL, SCORING_MODEL, Service, Wanted, embedding_inputs, text_input
from clipchoir._results import Classification, Embedding, Vector
from clipchoir._retry import RetryingClient
from clipchoir._status import Status
from clipchoir.errors import BadRequestError, ClientClosedError, ServerFailedError

_LAST_ANSWERS = 2.0  # seconds that requests in flight have when the client is closed
BATCH_SIZE = 16
URL = "localhost:8001"


@dataclass(frozen=True)
class Batches:
    """Work that goes through the pipeline.

    Attributes:
        work: batch -> its results.
        batches: where the batches are not the caller's images: what they are.
        ordered: results in the order of the batches, or as they come.
    """

    work: Callable[[Any], list[Any]]
    batches: Iterable[Any] = ()
    ordered: bool = True


class Core:
    """Connections, threads and checks of a client. Safe to use from several threads."""

    def __init__(self, url: str | Sequence[str], keywords: ConnectionKeywords) -> None:
        """
        Args:
            url: host:port of a server's gRPC endpoint, or of several.
            keywords: options of the connections.

        Raises:
            ValueError, OSError, TypeError: see `Client`.
        """
        urls = [url] if isinstance(url, str) else list(url)
        options = ConnectionOptions(**{name: value for name, value in keywords.items() if value is not None})  # type: ignore[arg-type]
        self.requests = RetryingClient(urls, options)
        self.pipeline = Pipeline(options.concurrency * len(urls))
        self._closed = False

    def close(self) -> None:
        """Close the connections. Requests in flight have a moment to be answered, then they are cancelled.

        Not at once: Triton before 24.12 may crash over a request that is cancelled while it ends
        (github.com/triton-inference-server/server, pull request 7840).
        """
        self._closed = True
        self.requests.stop_trying()
        self.pipeline.stop(_LAST_ANSWERS)
        self.requests.close()  # before threads are waited for: none is left waiting for an answer
        self.pipeline.join()

    @property
    def service(self) -> Service:
        """What the server says of itself. It is asked once."""
        return self.requests.service()

    def services(self) -> dict[str, Service]:
        """What each server says of itself now, by URL."""
        self._check_open()
        return self.requests.services()

    def status(self) -> list[Status]:
        """Status of each server."""
        self._check_open()
        return [Status.of(connection, _service(connection)) for connection in self.requests.balancer.connections]

    def about_label_sets(self, query: str) -> dict[str, Any]:
        """What the model `label_sets` answers."""
        self._check_open()
        self.requests.service()  # a wrong URL shows without a delay
        answer, url = self.requests.infer(LABEL_SETS_MODEL, text_input("name", query), ["answer"], {})
        text = answer.as_numpy("answer")
        if text is None or text.shape != (1,):
            raise ServerFailedError(f"the model {LABEL_SETS_MODEL} at {url} has no answer")
        return cast("dict[str, Any]", json.loads(text[0]))

    def prepare(
        self, images: object, batch_size: int, *, scores: bool, embeddings: bool, ordered: bool, options: Options
    ) -> Callable[[], Batches]:
        """Check what can be checked without the server; what is returned asks it, and has the work on each batch.

        Raises:
            TypeError, ValueError, ClientClosedError: something is wrong with the arguments, or the client is closed.
        """
        if isinstance(images, str | bytes | os.PathLike | np.ndarray) or hasattr(images, "read"):
            raise TypeError("images must be a list or another iterable of images, not one image")
        self._check_at_least_one(batch_size)
        self._check_open()
        label_set, parameters = split(options)

        def begin() -> Batches:
            encoders = self.service.encoders  # asked for here, once, and not in every thread
            self._check_fits(batch_size)
            wanted = Wanted(encoders, scores, embeddings, tuple(label_set.classes) if label_set else ())
            if scores:
                make: Any = classification(encoders)
                job = Job(self.requests, wanted, make, Classification, parameters, label_set)
            else:
                job = Job(self.requests, wanted, embedding, Embedding, parameters, label_set)
            return Batches(job.run, ordered=ordered)

        return begin

    def prepare_scoring(
        self, embeddings: Mapping[str, Vector], batch_size: int | None, options: Options
    ) -> Callable[[], Batches]:
        """The same for stored embeddings; what is returned has their batches, too."""
        if batch_size is not None:
            self._check_at_least_one(batch_size)
        self._check_open()
        label_set, parameters = split(options)

        def begin() -> Batches:
            encoders = self.service.encoders
            if set(embeddings) != set(encoders):
                raise ValueError(
                    f"embeddings of {', '.join(encoders)} are needed, got {', '.join(embeddings) or 'none'}"
                )
            if len({len(values) for values in embeddings.values()}) != 1:
                raise ValueError("the encoders' embeddings differ in length")
            size = self.service.max_batch_size if batch_size is None else batch_size
            self._check_fits(size)
            wanted = Wanted(encoders, classes=tuple(label_set.classes) if label_set else ())
            make = classification(encoders)

            def work(batch: tuple[int, dict[str, Vector]]) -> list[Classification]:
                start, values = batch
                count = len(values[encoders[0]])
                answer, url = self.requests.infer(
                    SCORING_MODEL, embedding_inputs(values), wanted.outputs(), parameters, label_set
                )
                rows = wanted.read(answer, count, url)
                missing = np.isnan([each[:, 0] for each in values.values()]).any(axis=0)  # (N,)
                return [
                    Classification(None, start + number, error="it has no embedding")
                    if missing[number]
                    else make(None, start + number, rows, number)
                    for number in range(count)
                ]

            return Batches(work, rows_of(embeddings, size))

        return begin

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("this client is closed")

    def _check_at_least_one(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    def _check_fits(self, batch_size: int) -> None:
        if batch_size > (most := self.service.max_batch_size):
            raise BadRequestError(
                f"a batch of {batch_size} images is too large for the server: it takes at most {most}"
            )


def _service(connection: Any) -> Service | None:
    try:
        return Service.of(connection)
    except BadRequestError:
        return None
