"""What the client returns for an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clipchoir.errors import BadImageError

Vector = NDArray[np.float32]


def _nothing() -> Vector:
    return np.empty(0, np.float32)


@dataclass(frozen=True)
class Embedding:
    """The embeddings of one image.

    Attributes:
        source: the path or name that was given, or None.
        index: position among the images that were given, from 0.
        embedding: float32 (D,) of each encoder, of length 1, by encoder; empty if there is an `error`, or if they were
            not asked for.
        error: why there is no answer for this image, or empty.
    """

    source: str | None
    index: int = 0
    embedding: Mapping[str, Vector] = field(default_factory=dict, kw_only=True)
    error: str = field(default="", kw_only=True)

    def raise_for_error(self) -> None:
        """Raise a BadImageError if this image has an `error`."""
        if self.error:
            raise BadImageError(f"{self.source or f'image {self.index}'}: {self.error}")


@dataclass(frozen=True)
class Classification(Embedding):
    """The answer for one image.

    Attributes:
        label: best class; empty if there is an `error`.
        score: its score, 0..1; NaN if there is an `error`.
        classes: names of the C classes.
        scores: float32 (C,), in the order of `classes`, sum 1.
        encoder_scores: float32 (C,) of each encoder alone, by encoder.
    """

    label: str = ""
    score: float = float("nan")
    classes: tuple[str, ...] = ()
    scores: Vector = field(default_factory=_nothing)
    encoder_scores: Mapping[str, Vector] = field(default_factory=dict)
