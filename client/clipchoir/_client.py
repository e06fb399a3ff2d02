"""The client of the `zero_shot` model."""

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

import numpy as np
from typing_extensions import Self, Unpack

from clipchoir._answers import LABEL_SETS_MODEL, SCORING_MODEL, Service, Wanted, embedding_inputs, text_input
from clipchoir._connection import Access, Tls
from clipchoir._engine import Engine, plain
from clipchoir._images import Image
from clipchoir._jobs import Job, Pipeline, batches, classification, embedding, rows_of
from clipchoir._label_set import LabelSet
from clipchoir._options import Options, split
from clipchoir._results import Classification, Embedding, Vector
from clipchoir._status import Status
from clipchoir.errors import BadRequestError, ClientClosedError, ServerFailedError

_LAST_ANSWERS = 2.0  # seconds that requests in flight have when the client is closed
BATCH_SIZE, CONCURRENCY = 16, 4


class Client:
    """Sends images to clipchoir servers. Safe to share between threads; use as a context manager or `close()` it."""

    def __init__(
        self,
        url: str | Sequence[str] = "localhost:8001",
        *,
        timeout: float = 60.0,
        patience: float = 30.0,
        concurrency: int = CONCURRENCY,
        tls: Tls | bool = False,
        headers: Mapping[str, str] | None = None,
        compression: str | None = None,
        shared_memory: bool = False,
    ) -> None:
        """
        Args:
            url: host:port of the server's gRPC endpoint. Several, of servers of the same repository, share the
                requests; one that does not answer is left out until it does. Nothing is sent yet.
            timeout: seconds that an answer may take, each time that a request is sent.
            patience: seconds that a request is tried again for when no server takes it (none answers, or all reject
                it because they have too much to do); 0: never. The very first request is not tried again.
            concurrency: requests in flight at each server. Less for a while after a server has rejected some.
            tls: encrypt; `Tls(...)` names certificates, True takes the system's.
            headers: sent with every request: {"authorization": "Bearer ..."}.
            compression: of requests, "gzip" or "deflate".
            shared_memory: images go to servers of this machine through shared memory, where these allow it. Off: the
                throughput was measured to be the same within the noise (benchmarks/results/shared_memory.md).

        Raises:
            ValueError: an argument is out of its range.
            OSError: a certificate cannot be read.
        """
        urls = [url] if isinstance(url, str) else list(url)
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        access = Access(timeout, Tls() if tls is True else tls or None, dict(headers or {}), compression, shared_memory)
        self._engine = Engine(urls, access, concurrency, patience)
        self._pipeline = Pipeline(concurrency * len(urls))
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Requests in flight have a moment to be answered, then they are cancelled.

        Not at once: Triton before 24.12 may crash over a request that is cancelled while it ends
        (github.com/triton-inference-server/server, pull request 7840).
        """
        self._closed = True
        self._engine.stop_trying()
        self._pipeline.stop(_LAST_ANSWERS)
        self._engine.close()  # before threads are waited for: none is left waiting for an answer
        self._pipeline.join()

    @property
    def service(self) -> Service:
        """What the server says of itself: encoders, default label set, repository version, largest batch.

        Raises:
            ClipchoirError: no server answers, or it serves no `zero_shot`.
        """
        return self._engine.service()

    def services(self) -> dict[str, Service]:
        """What each server says of itself now, by URL. One that does not answer is left out."""
        self._check_open()
        return self._engine.services()

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in the order of `weights`. Raises as `service` does."""
        return self.service.encoders

    def classify(
        self,
        images: Iterable[Image],
        *,
        batch_size: int = BATCH_SIZE,
        embeddings: bool = False,
        **options: Unpack[Options],
    ) -> list[Classification]:
        """Classify images; one result per image, in the same order.

        Args:
            images: paths, `file:` URLs, bytes of image files, binary files, PIL images, uint8 arrays (H, W, 3) or
                (H, W); or pairs of a name, which becomes the result's `source`, and one of these.
            batch_size: images per request, at most the server's `max_batch_size`.
            embeddings: fill the results' `embedding`.
            **options: see `Options`: `label_set` (a name or a `LabelSet`), `weights`, `logit_scale`, `drop_below`,
                `aggregate`, `priority`.

        Raises:
            ClipchoirError: of the kind that fits, see `clipchoir.errors`. An image that cannot be read or decoded
                raises nothing: its result has an `error`.
            TypeError, ValueError: something is no image, or an argument is out of its range.
        """
        return list(self.stream(images, batch_size=batch_size, embeddings=embeddings, **options))

    def stream(
        self,
        images: Iterable[Image],
        *,
        batch_size: int = BATCH_SIZE,
        embeddings: bool = False,
        ordered: bool = True,
        **options: Unpack[Options],
    ) -> Generator[Classification, None, None]:
        """Like `classify`, but takes images as it needs them and yields results as they come.

        Args:
            ordered: False: each result as soon as it is there; its `index` tells to which image it belongs.
        """
        self._check(images, batch_size)
        label_set, parameters = split(options)
        return self._streamed(images, batch_size, ordered, True, embeddings, label_set, parameters)

    def embed(
        self,
        images: Iterable[Image],
        *,
        batch_size: int = BATCH_SIZE,
        ordered: bool = True,
        priority: int | None = None,
    ) -> Generator[Embedding, None, None]:
        """Like `stream`, but the embeddings of each encoder only."""
        self._check(images, batch_size)
        _, parameters = split({"priority": priority})
        return self._streamed(images, batch_size, ordered, False, True, None, parameters)

    def score(
        self, embeddings: Mapping[str, Vector], *, batch_size: int | None = None, **options: Unpack[Options]
    ) -> Generator[Classification, None, None]:
        """Classify images by their stored embeddings; no encoder runs.

        Args:
            embeddings: float32 (N, D) by encoder, as `embed` gives them; all encoders of the server. A row of NaN gives
                a result with an `error`.
            batch_size: rows per request; None: as many as the server takes.

        Raises:
            ClipchoirError, ValueError: as `classify`; or an encoder's embeddings are missing or of another length.
        """
        self._check_open()
        work, batches_ = self._scoring(embeddings, batch_size, options)
        return self._pipeline.results(work, batches_)

    def label_sets(self) -> dict[str, Any]:
        """The named sets of the server: `{"default": name, "label_sets": {name: {"classes": C, "prompts": P}}}`.

        And `"embedding_ids": {encoder: id}`: embeddings of images are comparable where these are the same.
        """
        return self._about_label_sets("")

    def label_set(self, label_set: str | LabelSet) -> dict[str, Any]:
        """One set, by name or by what it is: `classes`, `prompts` by class, `fingerprints` of the encoders.

        Raises:
            UnknownLabelSetError: the server does not know it; it knows a `LabelSet` once it was used.
        """
        return self._about_label_sets(label_set.id if isinstance(label_set, LabelSet) else label_set)

    def check(self, label_set: LabelSet) -> dict[str, Any]:
        """What the server would make of a set, without embedding it.

        Returns:
            `id`; `classes` and `prompts`, their numbers; `known`, whether it is embedded already; and `cut`, the
            prompts that are longer than the encoders read.

        Raises:
            BadRequestError: it is not a good set; the message says why.
        """
        return self._about_label_sets(label_set.spec)

    def status(self) -> list[Status]:
        """Of each server.

        Raises:
            ClipchoirError: one does not answer.
        """
        self._check_open()
        return [Status.of(connection, _service(connection)) for connection in self._engine.endpoints.connections]

    def _about_label_sets(self, query: str) -> dict[str, Any]:
        self._check_open()
        self._engine.service()  # a wrong URL shows without a delay
        answer, url = self._engine.infer(LABEL_SETS_MODEL, plain([text_input("name", query)]), ["answer"], {})
        text = answer.as_numpy("answer")
        if text is None or text.shape != (1,):
            raise ServerFailedError(f"the model {LABEL_SETS_MODEL} at {url} has no answer")
        return cast("dict[str, Any]", json.loads(text[0]))

    def _streamed(
        self,
        images: Iterable[Image],
        batch_size: int,
        ordered: bool,
        scores: bool,
        embeddings: bool,
        label_set: LabelSet | None,
        parameters: dict[str, str],
    ) -> Generator[Any, None, None]:
        """Asks nothing of the server before the first result is wanted."""
        job = self._job(batch_size, scores, embeddings, label_set, parameters)
        yield from self._pipeline.results(job.run, batches(images, batch_size), ordered)

    def _scoring(
        self, embeddings: Mapping[str, Vector], batch_size: int | None, options: Options
    ) -> tuple[Callable[[Any], list[Classification]], Iterator[Any]]:
        """What `score` does with each batch, and the batches."""
        encoders = self.encoders
        if set(embeddings) != set(encoders):
            raise ValueError(f"embeddings of {', '.join(encoders)} are needed, got {', '.join(embeddings) or 'none'}")
        if len({len(values) for values in embeddings.values()}) != 1:
            raise ValueError("the encoders' embeddings differ in length")
        label_set, parameters = split(options)
        wanted = Wanted(encoders, classes=tuple(label_set.classes) if label_set else ())
        make = classification(encoders)

        def work(batch: tuple[int, dict[str, Vector]]) -> list[Classification]:
            start, values = batch
            count = len(values[encoders[0]])
            answer, url = self._engine.infer(
                SCORING_MODEL, plain(embedding_inputs(values)), wanted.outputs(), parameters, label_set
            )
            rows = wanted.read(answer, count, url)
            missing = np.isnan([each[:, 0] for each in values.values()]).any(axis=0)  # (N,)
            return [
                Classification(None, start + number, error="it has no embedding")
                if missing[number]
                else make(None, start + number, rows, number)
                for number in range(count)
            ]

        size = self.service.max_batch_size if batch_size is None else batch_size
        self._check_batch(size)
        return work, rows_of(embeddings, size)

    def _job(
        self, batch_size: int, scores: bool, embeddings: bool, label_set: LabelSet | None, parameters: dict[str, str]
    ) -> Job[Any]:
        encoders = self.encoders  # asked for here, once, and not in every thread
        self._check_batch(batch_size)
        wanted = Wanted(encoders, scores, embeddings, tuple(label_set.classes) if label_set else ())
        make, failed = (classification(encoders), Classification) if scores else (embedding, Embedding)
        return Job(self._engine, wanted, make, failed, parameters, label_set)

    def _check(self, images: object, batch_size: int) -> None:
        if isinstance(images, str | bytes | os.PathLike | np.ndarray) or hasattr(images, "read"):
            raise TypeError("images must be a list or another iterable of images, not one image")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("this client is closed")

    def _check_batch(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > (most := self.service.max_batch_size):
            raise BadRequestError(
                f"a batch of {batch_size} images is too large for the server: it takes at most {most}"
            )


def _service(connection: Any) -> Service | None:
    try:
        return Service.of(connection)
    except BadRequestError:
        return None
