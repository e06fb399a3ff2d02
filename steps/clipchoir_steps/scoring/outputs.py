"""The public outputs of `zero_shot`: the one table of them, and what they are made of. Pure NumPy, no Triton."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.scoring.formula import FloatArray, score
from clipchoir_steps.scoring.options import Scoring

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Scored:
    """A batch of N images, scored for C classes by E encoders. Rows with an error have numbers that mean nothing."""

    embeddings: Mapping[str, FloatArray]  # by encoder, (N, D)
    errors: NDArray[np.object_]  # (N, 1) bytes: empty, or why the row has no scores
    classes: NDArray[np.object_]  # (C,)
    ensemble: FloatArray  # (N, C)
    encoders: FloatArray  # (N, E, C)
    best: NDArray[np.intp]  # (N,)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """(N,) whether the row has an error."""
        result: NDArray[np.bool_] = self.errors[:, 0] != b""
        return result

    @property
    def agreed(self) -> NDArray[np.bool_]:
        """(N,) whether every encoder has the ensemble's best class."""
        result: NDArray[np.bool_] = (self.encoders.argmax(axis=2) == self.best[:, None]).all(axis=1)
        return result


@dataclass(frozen=True)
class Output:
    """One output: as the repository's configs declare it, and how a batch's tensor is made.

    Attributes:
        name: of the tensor.
        data_type: Triton's.
        dims: without the batch; -1 where the label set decides.
        meaning: for people.
        make: scored batch -> (N, *dims).
    """

    name: str
    data_type: str
    dims: str
    meaning: str
    make: Callable[[Scored], Array]


def public_outputs(embedding_dims: Mapping[str, int]) -> list[Output]:
    """The outputs of an ensemble of these encoders, in the configs' order. To add one, add it here."""
    return [
        Output("label", "TYPE_STRING", "1", "best class", _label),
        Output("score", "TYPE_FP32", "1", "its score", lambda it: _known(it, it.ensemble.max(axis=1, keepdims=True))),
        Output("scores", "TYPE_FP32", "-1", "class scores, sum 1", lambda it: _known(it, it.ensemble)),
        Output(
            "classes",
            "TYPE_STRING",
            "-1",
            "class names, in the order of the scores",
            lambda it: np.tile(it.classes, (len(it.errors), 1)),
        ),
        Output(
            "encoder_scores",
            "TYPE_FP32",
            f"{len(embedding_dims)}, -1",
            "the scores by each encoder alone",
            lambda it: _known(it, it.encoders),
        ),
        *(
            Output(
                f"{encoder}_embedding",
                "TYPE_FP32",
                str(dim),
                "unit-length image embedding",
                lambda it, encoder=encoder: _known(it, it.embeddings[encoder]),  # type: ignore[misc]
            )
            for encoder, dim in embedding_dims.items()
        ),
        Output("error", "TYPE_STRING", "1", "empty, or why this row has no scores", lambda it: it.errors),
    ]


def score_batch(
    embeddings: Mapping[str, FloatArray],
    errors: NDArray[np.object_] | None,
    label_set: EmbeddedLabelSet,
    scoring: Scoring,
) -> Scored:
    """Score a batch of image embeddings.

    Args:
        embeddings: by encoder, (N, D), rows of length 1.
        errors: (N, 1) bytes: why a row has no pixels, or empty; None where the embeddings were stored.
        label_set: to score for.
        scoring: how.
    """
    if errors is None:
        errors = np.full((len(next(iter(embeddings.values()))), 1), b"", np.object_)
    errors, images = _with_unusable(errors, embeddings)
    scores = score(images, [label_set.texts(encoder, scoring.aggregate) for encoder in embeddings], scoring)
    return Scored(
        embeddings,
        errors,
        np.array(label_set.classes, np.object_),
        scores.ensemble,
        scores.encoders,
        scores.best,
    )


def make_outputs(scored: Scored, outputs: Sequence[Output], wanted: Sequence[str]) -> dict[str, Array]:
    """Tensors by name, of the outputs that a request wants; the others cost nothing."""
    return {output.name: output.make(scored) for output in outputs if output.name in wanted}


def _label(scored: Scored) -> Array:
    labels = scored.classes[scored.best][:, None]  # (N, 1)
    labels[scored.failed] = ""
    return labels


def _known(scored: Scored, array: FloatArray) -> FloatArray:
    """NaN in the rows that have an error."""
    failed = scored.failed
    if not failed.any():
        return array
    return np.where(failed.reshape(-1, *[1] * (array.ndim - 1)), np.float32(np.nan), array)


def _with_unusable(
    errors: NDArray[np.object_], embeddings: Mapping[str, FloatArray]
) -> tuple[NDArray[np.object_], list[FloatArray]]:
    """The errors, with one where an encoder overflowed or what was stored is of a failed image, and what to score."""
    images = []
    for encoder, rows in embeddings.items():
        unusable = ~np.isfinite(rows).all(axis=1)  # (N,)
        if unusable.any():
            errors = errors.copy()
            errors[unusable & (errors[:, 0] == b"")] = f"the embedding by {encoder} is not finite".encode()
            rows = np.where(unusable[:, None], np.float32(0), rows)
        images.append(rows)
    return errors, images
