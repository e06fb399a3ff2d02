"""What every source of encoders hands over."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """What the rest of the repository has to know about an encoder; known before any weight is read."""

    image_size: int  # pixels
    embedding_dim: int
    mean: tuple[float, float, float]  # of pixels scaled to 0..1
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Towers:
    """A loaded CLIP pair, float32 and in eval mode.

    Attributes:
        image: float32 (N, 3, S, S) normalised pixels -> (N, D), not of length 1.
        text: int64 (N, 77) token ids -> (N, D), not of length 1.
    """

    image: nn.Module
    text: nn.Module
