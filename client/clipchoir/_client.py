"""The client of the `zero_shot` model."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from typing_extensions import Self, Unpack

from clipchoir._connection import ConnectionKeywords
from clipchoir._core import BATCH_SIZE, URL, Batches, Core
from clipchoir._images import Image
from clipchoir._label_set import LabelSet
from clipchoir._options import Options
from clipchoir._pipeline import batches
from clipchoir._protocol import Service
from clipchoir._results import Classification, Embedding, Vector
from clipchoir._status import Status


class Client:
    """Sends images to clipchoir servers. Safe to share between threads; use as a context manager or `close()` it."""

    def __init__(self, url: str | Sequence[str] = URL, **options: Unpack[ConnectionKeywords]) -> None:
        """
        Args:
            url: host:port of the server's gRPC endpoint. Several, of servers of the same repository, share the
                requests; one that does not answer is left out until it does. Nothing is sent yet.
            **options: `timeout` (seconds, 60), `patience` (seconds, 30), `concurrency` (4), `tls`, `headers`,
                `compression`; see `ConnectionOptions`.

        Raises:
            ValueError: an argument is out of its range.
            TypeError: there is no such option.
            OSError: a certificate cannot be read.
        """
        self._core = Core(url, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Requests in flight have two seconds to be answered, then they are cancelled."""
        self._core.close()

    @property
    def service(self) -> Service:
        """What the server says of itself: encoders, default label set, repository version, largest batch.

        Raises:
            ClipchoirError: no server answers, or it serves no `zero_shot`.
        """
        return self._core.service

    def services(self) -> dict[str, Service]:
        """What each server says of itself now, by URL. One that does not answer is left out."""
        return self._core.services()

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
        begin = self._core.prepare(
            images, batch_size, scores=True, embeddings=embeddings, ordered=ordered, options=options
        )
        return self._results(begin, images, batch_size)

    def embed(
        self,
        images: Iterable[Image],
        *,
        batch_size: int = BATCH_SIZE,
        ordered: bool = True,
        priority: int | None = None,
    ) -> Generator[Embedding, None, None]:
        """Like `stream`, but the embeddings of each encoder only."""
        begin = self._core.prepare(
            images, batch_size, scores=False, embeddings=True, ordered=ordered, options={"priority": priority}
        )
        return self._results(begin, images, batch_size)

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
        scoring = self._core.prepare_scoring(embeddings, batch_size, options)()
        return self._core.pipeline.results(scoring.work, iter(scoring.batches))

    def label_sets(self) -> dict[str, Any]:
        """The named sets of the server: `{"default": name, "label_sets": {name: {"classes": C, "prompts": P}}}`.

        And `"embedding_ids": {encoder: id}`: embeddings of images are comparable where these are the same.
        """
        return self._core.about_label_sets("")

    def label_set(self, label_set: str | LabelSet) -> dict[str, Any]:
        """One set, by name or by what it is: `classes`, `prompts` by class, `fingerprints` of the encoders.

        Raises:
            UnknownLabelSetError: the server does not know it; it knows a `LabelSet` once it was used.
        """
        return self._core.about_label_sets(label_set.id if isinstance(label_set, LabelSet) else label_set)

    def check(self, label_set: LabelSet) -> dict[str, Any]:
        """What the server would make of a set, without embedding it.

        Returns:
            `id`; `classes` and `prompts`, their numbers; `known`, whether it is embedded already; and `cut`, the
            prompts that are longer than the encoders read.

        Raises:
            BadRequestError: it is not a good set; the message says why.
        """
        return self._core.about_label_sets(label_set.spec)

    def status(self) -> list[Status]:
        """Status of each server.

        Raises:
            ClipchoirError: one does not answer.
        """
        return self._core.status()

    def _results(
        self, begin: Callable[[], Batches], images: Iterable[Image], batch_size: int
    ) -> Generator[Any, None, None]:
        """Asks nothing of the server before the first result is wanted."""
        job = begin()
        yield from self._core.pipeline.results(job.work, batches(images, batch_size), ordered=job.ordered)
