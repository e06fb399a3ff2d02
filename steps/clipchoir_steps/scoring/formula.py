"""Image embeddings x text embeddings -> class scores: the formula of the ensemble.

Per encoder, a softmax over all prompts of all classes together; a weighted sum over the encoders; the mean over each
class's own prompts; rows divided by their sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
SOFTMAX_MEAN, MEAN_EMBEDDING = "softmax_mean", "mean_embedding"
AGGREGATES = (SOFTMAX_MEAN, MEAN_EMBEDDING)
"""How a class's prompts become its score: the mean of their probabilities, or one embedding, the mean of theirs (as the
usual CLIP classifier has it)."""


@dataclass(frozen=True)
class Scores:
    """Scores of N images, C classes and E encoders."""

    ensemble: FloatArray  # (N, C), rows sum to 1
    encoders: FloatArray  # (N, E, C), the same for each encoder alone
    best: NDArray[np.intp]  # (N,), the first class with the highest ensemble score


def score(
    image_embeddings: Sequence[FloatArray],
    text_embeddings: Sequence[FloatArray],
    prompt_counts: NDArray[np.int64],
    weights: Sequence[float],
    logit_scale: float,
    drop_below: float,
) -> Scores:
    """Score a batch.

    Args:
        image_embeddings: per encoder, (N, D), rows of length 1.
        text_embeddings: per encoder, (P, D), rows of length 1, class after class.
        prompt_counts: prompts of each class, (C,), summing to P.
        weights: per encoder, >= 0, not all 0.
        logit_scale: factor before the softmax.
        drop_below: prompt probabilities at or under it count as 0; 0 keeps all.
    """
    probabilities = [
        softmax(np.float32(logit_scale) * (images @ texts.T))  # (N, P)
        for images, texts in zip(image_embeddings, text_embeddings, strict=True)
    ]
    shares = (np.asarray(weights, np.float64) / sum(weights)).astype(np.float32)
    mixed = sum(share * each for share, each in zip(shares, probabilities, strict=True))  # (N, P)
    ensemble = class_scores(np.asarray(mixed), prompt_counts, drop_below)
    encoders = np.stack([class_scores(each, prompt_counts, drop_below) for each in probabilities], axis=1)
    return Scores(ensemble, encoders, best=ensemble.argmax(axis=1))


def class_embeddings(text_embeddings: FloatArray, prompt_counts: NDArray[np.int64]) -> FloatArray:
    """Mean of each class's prompts, of length 1 again: (P, D) -> (C, D)."""
    starts = np.cumsum(prompt_counts) - prompt_counts  # (C,)
    means = np.add.reduceat(text_embeddings, starts, axis=0)  # (C, D), sums, which point the same way
    result: FloatArray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return result


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def class_scores(probabilities: FloatArray, prompt_counts: NDArray[np.int64], drop_below: float) -> FloatArray:
    """Prompt probabilities (N, P) -> class scores (N, C): mean over each class's prompts, rows sum to 1."""
    if drop_below > 0:
        probabilities = drop(probabilities, drop_below)
    starts = np.cumsum(prompt_counts) - prompt_counts  # (C,)
    means = np.add.reduceat(probabilities, starts, axis=1) / prompt_counts.astype(np.float32)  # (N, C)
    result: FloatArray = means / means.sum(axis=1, keepdims=True)
    return result


def drop(probabilities: FloatArray, threshold: float) -> FloatArray:
    """Set probabilities at or under the threshold to 0, except in a row that would be left empty."""
    kept = probabilities > threshold  # (N, P)
    kept |= ~kept.any(axis=1, keepdims=True)
    return np.where(kept, probabilities, np.float32(0))
