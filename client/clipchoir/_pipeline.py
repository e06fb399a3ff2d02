"""Batches of images on their way through the threads of a client."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from clipchoir._images import Image, Row, read
from clipchoir._label_set import LabelSet
from clipchoir._protocol import MODEL, Rows, Wanted, image_input
from clipchoir._results import Classification, Embedding
from clipchoir._retry import RetryingClient
from clipchoir.errors import ClientClosedError

_MOST_BYTES = 16 << 20  # of the images in a request; beyond, a batch becomes several requests

Batch = Sequence[tuple[int, Image]]
R = TypeVar("R", bound=Embedding)


@dataclass(frozen=True)
class Job(Generic[R]):
    """What to do with each batch.

    Attributes:
        requests: sends them.
        wanted: outputs.
        result: makes a result of a row of the answer.
        failed: makes a result of an image that has none.
        parameters: of every request.
        label_set: of every request, where it is brought by the client.
    """

    requests: RetryingClient
    wanted: Wanted
    result: Callable[[str | None, int, Rows, int], R]
    failed: Callable[..., R]
    parameters: dict[str, str] = field(default_factory=dict)
    label_set: LabelSet | None = None

    def run(self, batch: Batch) -> list[R]:
        """Read the images and ask for answers; one result for each, in order."""
        results: list[R | None] = []
        waiting: list[tuple[int, int, Row]] = []  # place among the results, index, image
        size = 0
        for index, image in batch:
            row = read(image)
            if row.error:
                results.append(self.failed(row.source, index, error=row.error))
                continue
            if waiting and size + len(row.data) > _MOST_BYTES:
                self._ask(waiting, results)
                waiting, size = [], 0
            waiting.append((len(results), index, row))
            results.append(None)
            size += len(row.data)
        if waiting:
            self._ask(waiting, results)
        return [result for result in results if result is not None]

    def _ask(self, waiting: Sequence[tuple[int, int, Row]], results: list[R | None]) -> None:
        images = [row.data for _, _, row in waiting]
        answer, url = self.requests.infer(
            MODEL, image_input(images), self.wanted.outputs(), self.parameters, self.label_set
        )
        rows = self.wanted.read(answer, len(images), url)
        for number, (place, index, row) in enumerate(waiting):
            if rows.errors[number]:
                results[place] = self.failed(row.source, index, error=rows.errors[number])
            else:
                results[place] = self.result(row.source, index, rows, number)


def classification(encoders: Sequence[str]) -> Callable[[str | None, int, Rows, int], Classification]:
    """Makes results with scores."""

    def make(source: str | None, index: int, rows: Rows, number: int) -> Classification:
        assert rows.score is not None and rows.scores is not None and rows.encoder_scores is not None  # noqa: S101, PT018
        return Classification(
            source,
            index,
            label=rows.labels[number],
            score=float(rows.score[number]),
            classes=rows.classes,
            scores=rows.scores[number],
            encoder_scores=dict(zip(encoders, rows.encoder_scores[number], strict=True)),
            embedding={encoder: values[number] for encoder, values in rows.embeddings.items()},
        )

    return make


def embedding(source: str | None, index: int, rows: Rows, number: int) -> Embedding:
    """A result without scores."""
    return Embedding(source, index, embedding={encoder: values[number] for encoder, values in rows.embeddings.items()})


def batches(images: Iterable[Image], size: int) -> Iterator[Batch]:
    """Numbered, in batches."""
    numbered = enumerate(images)
    while batch := list(islice(numbered, size)):
        yield batch


class Pipeline:
    """Threads that work on batches, and no more batches than they can hold. Safe to use from several threads."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="clipchoir")
        self._in_flight: set[Future[Any]] = set()
        self._stopped = False
        self.capacity = 2 * threads  # batches: in work, done and waiting for their turn, or waiting for a thread

    def submit(self, work: Callable[[Any], list[R]], batch: Any) -> "Future[list[R]]":
        """Begin with a batch.

        Raises:
            ClientClosedError: `stop` was called.
        """
        self._check_open()
        try:
            future = self._threads.submit(self._work, work, batch)
        except RuntimeError as error:  # stopped just now
            raise ClientClosedError("the client was closed") from error
        self._in_flight.add(future)
        future.add_done_callback(self._in_flight.discard)
        return future

    def stop(self, patience: float) -> None:
        """Begin with nothing new, and give what is in flight `patience` seconds. What was waiting fails."""
        self._stopped = True
        self._threads.shutdown(wait=False)  # futures are not cancelled: that would wake nobody who waits for them
        wait(self._in_flight.copy(), timeout=patience)

    def _work(self, work: Callable[[Any], list[R]], batch: Any) -> list[R]:
        self._check_open()
        return work(batch)

    def _check_open(self) -> None:
        if self._stopped:
            raise ClientClosedError("the client was closed")

    def join(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    def results(
        self, work: Callable[[Any], list[R]], some: Iterator[Any], *, ordered: bool = True
    ) -> Generator[R, None, None]:
        """Results of batches, which are taken as they are needed.

        Args:
            work: on a batch.
            some: batches.
            ordered: False: as they come.
        """
        waiting: deque[Future[list[R]]] = deque()
        try:
            for batch in some:
                waiting.append(self.submit(work, batch))
                if len(waiting) >= self.capacity:
                    yield from _next(waiting, ordered=ordered)
            while waiting:
                yield from _next(waiting, ordered=ordered)
        finally:
            for future in waiting:
                future.cancel()


def _next(waiting: "deque[Future[list[R]]]", *, ordered: bool) -> list[R]:
    if ordered:
        return waiting.popleft().result()
    done = wait(waiting, return_when=FIRST_COMPLETED).done
    first = next(future for future in waiting if future in done)
    waiting.remove(first)
    return first.result()


def rows_of(embeddings: Mapping[str, Any], size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stored embeddings, (N, D) by encoder, in batches with the index of their first row."""
    count = len(next(iter(embeddings.values())))
    for start in range(0, count, size):
        yield start, {encoder: values[start : start + size] for encoder, values in embeddings.items()}
