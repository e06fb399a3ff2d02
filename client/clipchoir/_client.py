"""The gRPC client of the `zero_shot` model."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir._results import Classification
from clipchoir.errors import BadRequestError, from_triton

MODEL = "zero_shot"
_LAST_ANSWERS = 2.0  # seconds that requests in flight have when the client is closed
_OUTPUTS = ("label", "score", "classes", "scores", "encoder_scores", "error")

Image = str | os.PathLike[str] | bytes


@dataclass(frozen=True)
class _Row:
    source: str | None
    data: bytes = b""
    error: str = ""


class Client:
    """Sends images to a clipchoir server. Safe to share between threads; use as a context manager or `close()` it."""

    def __init__(self, url: str = "localhost:8001", *, timeout: float = 60.0, concurrency: int = 4) -> None:
        """
        Args:
            url: host:port of the server's gRPC endpoint. Nothing is sent yet.
            timeout: seconds that a request may take.
            concurrency: requests in flight at a time.
        """
        self.url = url
        self._timeout = timeout
        self._concurrency = concurrency
        self._closed = False
        self._triton = grpcclient.InferenceServerClient(url, channel_args=_channel_options(url))
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="clipchoir")
        self._in_flight: set[Future[list[Classification]]] = set()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Requests in flight have a moment to be answered, then they are cancelled.

        Not at once: Triton before 24.12 may crash over a request that is cancelled while it ends
        (github.com/triton-inference-server/server, pull request 7840).
        """
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        wait(self._in_flight.copy(), timeout=_LAST_ANSWERS)
        self._triton.close()  # before threads are waited for: none is left waiting for an answer
        self._threads.shutdown()

    @cached_property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in the order of `weights`.

        Raises:
            ClipchoirError: the server does not answer or serves no `zero_shot`.
        """
        try:
            answer = self._triton.get_model_config(MODEL, client_timeout=self._timeout)
        except InferenceServerException as error:
            raise from_triton(error, self.url, self._timeout) from error
        names = answer.config.parameters["encoders"].string_value
        if not names:
            raise BadRequestError(f"the model {MODEL} at {self.url} is not clipchoir's: its config names no encoders")
        return tuple(names.split(","))

    def classify(
        self,
        images: Iterable[Image],
        *,
        label_set: str | None = None,
        weights: Sequence[float] | None = None,
        logit_scale: float | None = None,
        drop_below: float | None = None,
        batch_size: int = 16,
    ) -> list[Classification]:
        """Classify images; one result per image, in the same order.

        Args:
            images: paths of image files, or encoded images as bytes.
            label_set: name of a label set of the server; None for its default.
            weights: one per encoder, in the order of `encoders`; None for the server's.
            logit_scale: factor before the softmax; None for the server's.
            drop_below: prompt probabilities at or under it count as 0; None for the server's.
            batch_size: images per request, at most the server's `max_batch_size`.

        Raises:
            ClipchoirError: of the kind that fits, see `clipchoir.errors`. An image that cannot be read or decoded
                raises nothing: its result has an `error`.
        """
        return list(
            self.stream(
                images,
                label_set=label_set,
                weights=weights,
                logit_scale=logit_scale,
                drop_below=drop_below,
                batch_size=batch_size,
            )
        )

    def stream(
        self,
        images: Iterable[Image],
        *,
        label_set: str | None = None,
        weights: Sequence[float] | None = None,
        logit_scale: float | None = None,
        drop_below: float | None = None,
        batch_size: int = 16,
    ) -> Generator[Classification, None, None]:
        """Like `classify`, but takes images as it needs them and yields each result when it is its turn."""
        if isinstance(images, str | bytes | os.PathLike):
            raise TypeError("images must be a list or another iterable of images, not one image")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self._closed:
            raise ValueError("this client is closed")
        return self._stream(images, _parameters(label_set, weights, logit_scale, drop_below), batch_size)

    def _stream(
        self, images: Iterable[Image], parameters: dict[str, str], batch_size: int
    ) -> Generator[Classification, None, None]:
        encoders = self.encoders  # asked for here, once, and not in every thread
        in_flight: deque[Future[list[Classification]]] = deque()
        try:
            for batch in _batches(images, batch_size):
                future = self._threads.submit(self._classify_batch, batch, parameters, encoders)
                self._in_flight.add(future)
                future.add_done_callback(self._in_flight.discard)
                in_flight.append(future)
                if len(in_flight) > self._concurrency:
                    yield from in_flight.popleft().result()
            while in_flight:
                yield from in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()

    def _classify_batch(
        self, images: Sequence[Image], parameters: dict[str, str], encoders: Sequence[str]
    ) -> list[Classification]:
        rows = [_read(image) for image in images]
        answers = iter(self._infer([row for row in rows if not row.error], parameters, encoders))
        return [Classification(row.source, error=row.error) if row.error else next(answers) for row in rows]

    def _infer(self, rows: Sequence[_Row], parameters: dict[str, str], encoders: Sequence[str]) -> list[Classification]:
        if not rows:
            return []
        image = grpcclient.InferInput("image", [len(rows), 1], "BYTES")
        image.set_data_from_numpy(np.array([[row.data] for row in rows], np.object_))
        try:
            answer = self._triton.infer(
                MODEL,
                [image],
                outputs=[grpcclient.InferRequestedOutput(name) for name in _OUTPUTS],
                parameters=parameters or None,
                client_timeout=self._timeout,
            )
        except InferenceServerException as error:
            raise from_triton(error, self.url, self._timeout) from error
        arrays = {name: answer.as_numpy(name) for name in _OUTPUTS}
        classes = tuple(name.decode() for name in arrays["classes"][0])  # the same in every row
        return [
            Classification(
                source=row.source,
                label=arrays["label"][index, 0].decode(),
                score=float(arrays["score"][index, 0]),
                classes=classes,
                scores=arrays["scores"][index],
                encoder_scores=dict(zip(encoders, arrays["encoder_scores"][index], strict=True)),
                error=arrays["error"][index, 0].decode(),
            )
            for index, row in enumerate(rows)
        ]


def _channel_options(url: str) -> list[tuple[str, int]]:
    """No proxy between a client and a server on the same machine."""
    host = url.rpartition(":")[0]
    is_local = host == "localhost" or host.startswith("127.")
    return [("grpc.enable_http_proxy", 0)] if is_local else []


def _read(image: Image) -> _Row:
    if isinstance(image, bytes):
        return _Row(None, image)
    source = os.fspath(image)
    try:
        return _Row(source, Path(source).read_bytes())
    except OSError as error:
        return _Row(source, error=f"cannot be read: {error.strerror}")


def _batches(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch


def _parameters(
    label_set: str | None,
    weights: Sequence[float] | None,
    logit_scale: float | None,
    drop_below: float | None,
) -> dict[str, str]:
    values = {
        "label_set": label_set,
        "weights": None if weights is None else ",".join(map(str, weights)),
        "logit_scale": logit_scale,
        "drop_below": drop_below,
    }
    return {name: str(value) for name, value in values.items() if value is not None}
