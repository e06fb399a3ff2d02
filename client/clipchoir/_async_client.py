"""The client for programs with an event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self, Unpack

from clipchoir._client import BATCH_SIZE, CONCURRENCY, Client
from clipchoir._connection import Tls
from clipchoir._images import Image
from clipchoir._label_set import LabelSet
from clipchoir._options import Options, split
from clipchoir._results import Classification, Embedding, Vector
from clipchoir._status import Status

T = TypeVar("T")
Images = Iterable[Image] | AsyncIterable[Image]


class AsyncClient:
    """`Client`, with coroutines. Requests run in the threads of one such client, so that both behave the same way;
    the event loop is never held up. What is cancelled here is still answered there, and dropped."""

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
        """As `Client`."""
        self._client = Client(
            url,
            timeout=timeout,
            patience=patience,
            concurrency=concurrency,
            tls=tls,
            headers=headers,
            compression=compression,
            shared_memory=shared_memory,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await asyncio.to_thread(self._client.close)

    async def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in the order of `weights`."""
        return await asyncio.to_thread(lambda: self._client.encoders)

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
        self._client._check(images, batch_size)
        label_set, parameters = split(options)
        return self._streamed(
            lambda: (
                self._client._job(batch_size, True, embeddings, label_set, parameters).run,
                _batches(images, batch_size),
            ),
            ordered,
        )

    def embed(
        self, images: Images, *, batch_size: int = BATCH_SIZE, ordered: bool = True, priority: int | None = None
    ) -> AsyncGenerator[Embedding, None]:
        """As `Client.embed`."""
        self._client._check(images, batch_size)
        _, parameters = split({"priority": priority})
        return self._streamed(
            lambda: (
                self._client._job(batch_size, False, True, None, parameters).run,
                _batches(images, batch_size),
            ),
            ordered,
        )

    def score(
        self, embeddings: Mapping[str, Vector], *, batch_size: int | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Classification, None]:
        """As `Client.score`."""
        self._client._check_open()

        def scoring() -> tuple[Callable[[Any], list[Any]], AsyncGenerator[Any, None]]:
            work, batches = self._client._scoring(embeddings, batch_size, options)
            return work, _one_by_one(batches)

        return self._streamed(scoring, ordered=True)

    async def label_sets(self) -> dict[str, Any]:
        """As `Client.label_sets`."""
        return await asyncio.to_thread(self._client.label_sets)

    async def label_set(self, label_set: str | LabelSet) -> dict[str, Any]:
        """As `Client.label_set`."""
        return await asyncio.to_thread(self._client.label_set, label_set)

    async def check(self, label_set: LabelSet) -> dict[str, Any]:
        """As `Client.check`."""
        return await asyncio.to_thread(self._client.check, label_set)

    async def status(self) -> list[Status]:
        """As `Client.status`."""
        return await asyncio.to_thread(self._client.status)

    async def _streamed(
        self, begin: Callable[[], tuple[Callable[[Any], list[Any]], AsyncGenerator[Any, None]]], ordered: bool
    ) -> AsyncGenerator[Any, None]:
        """Results of batches.

        Args:
            begin: asks the server what has to be known, and gives what to do with a batch, and the batches.
            ordered: False: as they come.
        """
        work, batches = await asyncio.to_thread(begin)
        pipeline = self._client._pipeline
        waiting: deque[asyncio.Future[list[Any]]] = deque()
        try:
            async with aclosing(batches):
                async for batch in batches:
                    waiting.append(asyncio.wrap_future(pipeline.submit(work, batch)))
                    if len(waiting) >= pipeline.capacity:
                        for result in await _next(waiting, ordered):
                            yield result
            while waiting:
                for result in await _next(waiting, ordered):
                    yield result
        finally:
            for future in waiting:
                future.cancel()  # what has begun goes on, see the class


async def _one_by_one(some: Iterable[T]) -> AsyncGenerator[T, None]:
    for each in some:
        yield each


async def _next(waiting: "deque[asyncio.Future[list[T]]]", ordered: bool) -> list[T]:
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
