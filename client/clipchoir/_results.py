"""What the client returns for an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Classification:
    """The answer for one image.

    Attributes:
        source: the path that was given, or None for bytes.
        label: best class; empty if there is an `error`.
        score: its score, 0..1; NaN if there is an `error`.
        classes: names of the C classes.
        scores: float32 (C,), in the order of `classes`, sum 1.
        encoder_scores: float32 (C,) of each encoder alone, by encoder.
        error: why the image could not be classified, or empty.
    """

    source: str | None
    label: str = ""
    score: float = float("nan")
    classes: tuple[str, ...] = ()
    scores: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    encoder_scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str = ""
