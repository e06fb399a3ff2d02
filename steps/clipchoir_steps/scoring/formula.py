"""Image embeddings x text embeddings -> class scores: the formula of the ensemble.

Per encoder, a softmax over all prompts of all classes together; a weighted sum over the encoders; the mean over each
class's own prompts; rows divided by their sum.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipchoir_steps.scoring.options import MEAN_EMBEDDING, Scoring

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Scores of N images, C classes and E encoders."""

    ensemble: FloatArray  # (N, C), rows sum to 1
    encoders: FloatArray  # (N, E, C), the same for each encoder alone
    best: NDArray[np.intp]  # (N,), the first class with the highest ensemble score


@dataclass(frozen=True)
class Texts:
    """What images are compared with, as one encoder sees it: P rows, each a prompt or the mean of a class.

    Equal rows are kept once. So their products are one number, and classes with the same prompts tie exactly: a matrix
    product of equal columns may differ in the last bit, by the kernel that the BLAS library has chosen.
    """

    distinct: FloatArray  # (U, D)
    rows: NDArray[np.intp] | None  # (P,), where each of the P rows is in `distinct`; None: they are these rows
    counts: NDArray[np.int64]  # (C,), rows of each class, class after class

    @classmethod
    def of(cls, prompts: FloatArray, counts: NDArray[np.int64], aggregate: str) -> "Texts":
        """The texts of a label set.

        Args:
            prompts: (P, D), rows of length 1, class after class.
            counts: (C,), prompts of each class.
            aggregate: one of `options`'.
        """
        if aggregate == MEAN_EMBEDDING:
            prompts, counts = class_embeddings(prompts, counts), np.ones(len(counts), np.int64)
        rows = _repeated(prompts)
        if rows is None:
            return cls(prompts, None, counts)
        firsts, index = np.unique(rows, return_inverse=True)
        return cls(prompts[firsts], index, counts)

    def products(self, images: FloatArray) -> FloatArray:
        """(N, D) -> (N, P)."""
        products: FloatArray = images @ self.distinct.T  # (N, U)
        return products if self.rows is None else products[:, self.rows]


def score(images: Sequence[FloatArray], texts: Sequence[Texts], scoring: Scoring) -> Scores:
    """Score a batch.

    Args:
        images: per encoder, (N, D), rows of length 1.
        texts: per encoder, of one label set.
        scoring: how.
    """
    probabilities = [
        softmax(np.float32(scoring.logit_scale) * each.products(embeddings))  # (N, P)
        for embeddings, each in zip(images, texts, strict=True)
    ]
    shares = (np.asarray(scoring.weights, np.float64) / sum(scoring.weights)).astype(np.float32)
    mixed = sum(share * each for share, each in zip(shares, probabilities, strict=True))  # (N, P)
    counts, drop_below = texts[0].counts, scoring.drop_below
    ensemble = class_scores(np.asarray(mixed), counts, drop_below)
    encoders = np.stack([class_scores(each, counts, drop_below) for each in probabilities], axis=1)
    return Scores(ensemble, encoders, best=ensemble.argmax(axis=1))


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def class_scores(probabilities: FloatArray, counts: NDArray[np.int64], drop_below: float) -> FloatArray:
    """Prompt probabilities (N, P) -> class scores (N, C): mean over each class's prompts, rows sum to 1."""
    if drop_below > 0:
        probabilities = drop(probabilities, drop_below)
    means = np.add.reduceat(probabilities, _starts(counts), axis=1) / counts.astype(np.float32)  # (N, C)
    result: FloatArray = means / means.sum(axis=1, keepdims=True)
    return result


def drop(probabilities: FloatArray, threshold: float) -> FloatArray:
    """Set probabilities at or under the threshold to 0, except in a row that would be left empty."""
    kept = probabilities > threshold  # (N, P)
    kept |= ~kept.any(axis=1, keepdims=True)
    return np.where(kept, probabilities, np.float32(0))


def class_embeddings(prompts: FloatArray, counts: NDArray[np.int64]) -> FloatArray:
    """Mean of each class's prompts, of length 1 again: (P, D) -> (C, D)."""
    sums = np.add.reduceat(prompts, _starts(counts), axis=0)  # (C, D), which point where the means do
    result: FloatArray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return result


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    result: NDArray[np.int64] = np.cumsum(counts) - counts  # (C,)
    return result


def _repeated(rows: FloatArray) -> NDArray[np.intp] | None:
    """The first row that is equal to each, (P,); None if no two are equal."""
    heads = np.ascontiguousarray(rows[:, :4]).view(np.dtype((np.void, 4 * min(4, rows.shape[1]))))  # bits: fast to sort
    if len(np.unique(heads)) == len(rows):
        return None
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
    found = np.array([first.setdefault(digest, number) for number, digest in enumerate(digests)])
    return None if len(first) == len(rows) else found
