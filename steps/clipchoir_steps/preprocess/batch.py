"""Rows of several requests, decoded in parallel, each straight into its request's output."""

import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipchoir_steps.preprocess.decode import ErrorKind, ImageError, decode
from clipchoir_steps.preprocess.settings import Settings


@dataclass(frozen=True)
class Rejection:
    """Why a row was not decoded. Unlike an exception it keeps no half-decoded image alive."""

    kind: ErrorKind
    message: str


class Batch:
    """One request: encoded images in; pixels and an error per row out.

    Attributes:
        pixels: by size, uint8 (N, S, S, 3); a row that could not be decoded is black.
        rejections: why a row could not be decoded, or None, (N,).
        failure: set if something else than an image was wrong.
    """

    def __init__(self, rows: Sequence[bytes], sizes: Iterable[int]) -> None:
        self.rows = rows
        self.pixels: dict[int, NDArray[np.uint8]] = {
            size: np.empty((len(rows), size, size, 3), np.uint8) for size in sizes
        }
        self.rejections: list[Rejection | None] = [None] * len(rows)
        self.failure: Exception | None = None


class Decoder:
    """Decodes on several threads; PIL lets go of Python's lock while it decodes and resizes."""

    def __init__(self, settings: Settings, sizes: Collection[int]) -> None:
        self._settings = settings
        self._sizes = sizes
        self._draft_side = 2 * max(sizes) if settings.scaled_decoding else None
        self._helpers = ThreadPoolExecutor(max(1, settings.threads - 1), thread_name_prefix="decode")

    def decode(self, batches: Sequence[Batch]) -> None:
        """Decode every row of all of them. The calling thread takes part, so that a single row changes no thread."""
        rows = [(batch, index) for batch in batches for index in range(len(batch.rows))]
        # The largest first, so that no thread is left alone with it at the end.
        rows.sort(key=lambda row: len(row[0].rows[row[1]]), reverse=True)
        left = iter(rows)  # shared: taking the next one is atomic
        helpers = min(self._settings.threads, len(rows)) - 1
        helping = [self._helpers.submit(self._work, left) for _ in range(helpers)]
        self._work(left)
        for help_ in helping:
            if not help_.cancel():  # it has begun
                help_.result()

    def warm_up(self) -> None:
        """Decode a small JPEG on every thread, so that the first user finds code loaded and threads started."""
        image = io.BytesIO()
        Image.new("RGB", (32, 32)).save(image, "JPEG")
        self.decode([Batch([image.getvalue()] * self._settings.threads, self._sizes)])

    def close(self) -> None:
        """Stop the threads."""
        self._helpers.shutdown(cancel_futures=True)

    def _work(self, rows: Iterator[tuple[Batch, int]]) -> None:
        for batch, index in rows:
            try:
                self._decode_row(batch, index)
            except Exception as error:  # it must not fail the other requests
                batch.failure = error

    def _decode_row(self, batch: Batch, index: int) -> None:
        try:
            picture = decode(batch.rows[index], self._settings.limits, self._draft_side)
            for size, pixels in batch.pixels.items():
                pixels[index] = np.asarray(picture.resized(size))
        except ImageError as error:
            batch.rejections[index] = Rejection(error.kind, str(error))
            for pixels in batch.pixels.values():
                pixels[index] = 0
