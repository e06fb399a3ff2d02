"""How well the ensemble and each encoder alone do on labelled images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clipchoir._results import Classification
from clipchoir.errors import ClipchoirError

BINS = 10  # of the reliability table


class UnknownClassError(ClipchoirError):
    """A folder is not named like a class of the label set."""


@dataclass
class Evaluation:
    """Counts of an evaluation.

    Attributes:
        classes: names of the C classes.
        encoders: names of the E encoders.
        confusion: int (C, C): true class by predicted class, of the ensemble.
        encoder_hits: int (E,): images that each encoder alone got right.
        agreed, agreed_hits: images for which all encoders have the ensemble's best class, and those that are right.
        bin_counts, bin_hits, bin_scores: (BINS,) images by their score, in equal steps from 0 to 1; those that are
            right; the sum of their scores.
    """

    classes: tuple[str, ...]
    encoders: tuple[str, ...]
    confusion: NDArray[np.int64]
    encoder_hits: NDArray[np.int64]
    agreed: int = 0
    agreed_hits: int = 0
    bin_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    bin_hits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    bin_scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    @classmethod
    def count(cls, truths: Sequence[str], results: Iterable[Classification]) -> "Evaluation":
        """Compare results with the true classes of their images; results whose truth is empty are left out.

        Raises:
            UnknownClassError: a true class is none of the label set's.
        """
        self: Evaluation | None = None
        for truth, result in zip(truths, results, strict=True):
            if not truth:
                continue
            if self is None:
                size = len(result.classes)
                names = tuple(result.encoder_scores)
                self = cls(result.classes, names, np.zeros((size, size), np.int64), np.zeros(len(names), np.int64))
                numbers = {name: number for number, name in enumerate(result.classes)}
            if truth not in numbers:
                raise UnknownClassError(f'folder "{truth}" is not a class; the classes are {", ".join(self.classes)}')
            self._add(numbers[truth], numbers[result.label], result)
        return self or cls((), (), np.zeros((0, 0), np.int64), np.zeros(0, np.int64))

    def _add(self, truth: int, predicted: int, result: Classification) -> None:
        is_right = truth == predicted
        self.confusion[truth, predicted] += 1
        best = np.array([scores.argmax() for scores in result.encoder_scores.values()])
        self.encoder_hits += best == truth
        if (best == predicted).all():
            self.agreed += 1
            self.agreed_hits += is_right
        number = min(BINS - 1, int(result.score * BINS))
        self.bin_counts[number] += 1
        self.bin_hits[number] += is_right
        self.bin_scores[number] += result.score

    @property
    def total(self) -> int:
        """Images that were classified."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of them that the ensemble got right."""
        return self._share(int(np.trace(self.confusion)))

    @property
    def encoder_accuracy(self) -> dict[str, float]:
        """The same for each encoder alone."""
        return {name: self._share(int(hits)) for name, hits in zip(self.encoders, self.encoder_hits, strict=True)}

    @property
    def agreement(self) -> float:
        """Share of images for which all encoders have the ensemble's best class."""
        return self._share(self.agreed)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far score and accuracy are apart, mean over images by bins of the score.

        Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
        """
        return float(np.abs(self.bin_hits - self.bin_scores).sum()) / self.total if self.total else float("nan")

    def per_class(self) -> Iterator[tuple[str, int, float, float]]:
        """Name, number of images, precision and recall of each class."""
        hits = np.diag(self.confusion)
        for number, name in enumerate(self.classes):
            of_class, predicted = int(self.confusion[number].sum()), int(self.confusion[:, number].sum())
            yield (
                name,
                of_class,
                float(hits[number]) / predicted if predicted else float("nan"),
                float(hits[number]) / of_class if of_class else float("nan"),
            )

    def bins(self) -> Iterator[tuple[float, float, int, float, float]]:
        """From, to, number of images, their mean score and their accuracy."""
        for number, count in enumerate(self.bin_counts):
            if count:
                mean, accuracy = self.bin_scores[number] / count, self.bin_hits[number] / count
                yield number / BINS, (number + 1) / BINS, int(count), float(mean), float(accuracy)

    def _share(self, hits: int) -> float:
        return hits / self.total if self.total else float("nan")

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "images": self.total,
            "accuracy": self.accuracy,
            "encoder_accuracy": self.encoder_accuracy,
            "agreement": self.agreement,
            "accuracy_when_agreed": self.agreed_hits / self.agreed if self.agreed else None,
            "calibration_error": self.calibration_error,
            "classes": self.classes,
            "per_class": [
                {"class": name, "images": count, "precision": precision, "recall": recall}
                for name, count, precision, recall in self.per_class()
            ],
            "confusion": self.confusion.tolist(),
            "reliability": [
                {"from": low, "to": high, "images": count, "score": score, "accuracy": accuracy}
                for low, high, count, score, accuracy in self.bins()
            ],
        }

    def render(self) -> RenderableType:
        """Everything, for people."""
        confusion = Table("true \\ predicted", *map(escape, self.classes), title="Confusion matrix", box=None)
        for name, row in zip(self.classes, self.confusion, strict=True):
            confusion.add_row(Text(name), *(str(count) if count else "." for count in row))
        classes = Table("class", "images", "precision", "recall", title="Classes", box=None)
        for name, count, precision, recall in self.per_class():
            classes.add_row(Text(name), str(count), _percent(precision), _percent(recall))
        accuracy = Table("", "accuracy", title="Accuracy", box=None)
        accuracy.add_row("ensemble", f"{self.accuracy:.2%}")
        for encoder, share in self.encoder_accuracy.items():
            accuracy.add_row(f"{encoder} alone", f"{share:.2%}")
        reliability = Table("score", "images", "mean score", "accuracy", title="Reliability", box=None)
        for low, high, count, score, right in self.bins():
            reliability.add_row(f"{low:.1f} to {high:.1f}", str(count), f"{score:.3f}", f"{right:.3f}")
        right_of_agreed = self.agreed_hits / self.agreed if self.agreed else float("nan")
        return Group(
            confusion,
            "",
            classes,
            "",
            accuracy,
            f"all encoders agree on {self.agreement:.1%} of the images, of which {_percent(right_of_agreed)} are right",
            "",
            reliability,
            f"expected calibration error {self.calibration_error:.3f}",
        )


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.1%}"
