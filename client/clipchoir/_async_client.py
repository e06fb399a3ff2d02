"""The client for programs with an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self, Unpack

from clipchoir._connection import ConnectionKeywords
from clipchoir._core import BATCH_SIZE, URL, Batches, Core
from clipchoir._images import Image
from clipchoir._label_set import LabelSet
from clipchoir._options import Options
from clipchoir._results import Classification, Embedding, Vector
from clipchoir._status import Status

T = TypeVar("T")
Images = Iterable[Image] | AsyncIterable[Image]


class AsyncClient:
    """`Client`, with coroutines. Requests run in threads, as those of a `Client`, so that both behave the same way;
    the event loop is never held up. What is cancelled here is still answered there, and dropped."""

    def __init__(self, url: str | Sequence[str] = URL, **options: Unpack[ConnectionKeywords]) -> None:
        """As `Client`."""
        self._core = Core(url, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await asyncio.to_thread(self._core.close)

    async def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in the order of `weights`."""
        return (await asyncio.to_thread(lambda: self._core.service)).encoders

    async def classify(
        self, images: Images, *, batch_size: int = BATCH_SIZE, embeddings: bool = False, **options: Unpack[Options]
    ) -> list[Classification]:
        """As `Client.classify`; `images` may be an asynchronous iterable, too."""
        stream = self.stream(images, batch_size=batch_size, embeddings=embeddings, **options)
        return [result async for result in stream]

    def stream(
        self,
        images: Images,
        *,
        batch_size: int = BATCH_SIZE,
        embeddings: bool = False,
        ordered: bool = True,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Classification, None]:
        """As `Client.stream`."""
        begin = self._core.prepare(
            images, batch_size, scores=True, embeddings=embeddings, ordered=ordered, options=options
        )
        return self._results(begin, lambda _: _batches(images, batch_size))

    def embed(
        self, images: Images, *, batch_size: int = BATCH_SIZE, ordered: bool = True, priority: int | None = None
    ) -> AsyncGenerator[Embedding, None]:
        """As `Client.embed`."""
        begin = self._core.prepare(
            images, batch_size, scores=False, embeddings=True, ordered=ordered, options={"priority": priority}
        )
        return self._results(begin, lambda _: _batches(images, batch_size))

    def score(
        self, embeddings: Mapping[str, Vector], *, batch_size: int | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Classification, None]:
        """As `Client.score`."""
        begin = self._core.prepare_scoring(embeddings, batch_size, options)
        return self._results(begin, lambda job: _one_by_one(job.batches))

    async def label_sets(self) -> dict[str, Any]:
        """As `Client.label_sets`."""
        return await asyncio.to_thread(self._core.about_label_sets, "")

    async def label_set(self, label_set: str | LabelSet) -> dict[str, Any]:
        """As `Client.label_set`."""
        name = label_set.id if isinstance(label_set, LabelSet) else label_set
        return await asyncio.to_thread(self._core.about_label_sets, name)

    async def check(self, label_set: LabelSet) -> dict[str, Any]:
        """As `Client.check`."""
        return await asyncio.to_thread(self._core.about_label_sets, label_set.spec)

    async def status(self) -> list[Status]:
        """As `Client.status`."""
        return await asyncio.to_thread(self._core.status)

    async def _results(
        self, begin: Callable[[], Batches], batches_of: Callable[[Batches], AsyncGenerator[Any, None]]
    ) -> AsyncGenerator[Any, None]:
        """Results of batches.

        Args:
            begin: asks the server what has to be known, and gives the work on a batch.
            batches_of: the batches for this work.
        """
        job = await asyncio.to_thread(begin)
        pipeline = self._core.pipeline
        waiting: deque[asyncio.Future[list[Any]]] = deque()
        try:
            async with aclosing(batches_of(job)) as batches:
                async for batch in batches:
                    waiting.append(asyncio.wrap_future(pipeline.submit(job.work, batch)))
                    if len(waiting) >= pipeline.capacity:
                        for result in await _next(waiting, ordered=job.ordered):
                            yield result
            while waiting:
                for result in await _next(waiting, ordered=job.ordered):
                    yield result
        finally:
            for future in waiting:
                future.cancel()  # what has begun goes on, see the class


async def _one_by_one(some: Iterable[T]) -> AsyncGenerator[T, None]:
    for each in some:
        yield each


async def _next(waiting: "deque[asyncio.Future[list[T]]]", *, ordered: bool) -> list[T]:
    if ordered:
        first = waiting[0]
    else:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        first = next(future for future in waiting if future in done)
    results = await first
    waiting.remove(first)
    return results


async def _batches(images: Images, size: int) -> AsyncGenerator[list[tuple[int, Image]], None]:
    """Numbered, in batches. An iterable that is not asynchronous is asked in a thread: it may read files or wait."""
    batch: list[tuple[int, Image]] = []
    index = 0
    if isinstance(images, AsyncIterable):
        async for image in images:
            batch.append((index, image))
            index += 1
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch
        return
    iterator = iter(images)
    while batch := await asyncio.to_thread(_take, iterator, index, size):
        index += len(batch)
        yield batch


def _take(iterator: Any, start: int, size: int) -> list[tuple[int, Image]]:
    return [(index, image) for index, image in zip(range(start, start + size), iterator, strict=False)]
