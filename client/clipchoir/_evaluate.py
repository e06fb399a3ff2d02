"""Accuracy of the ensemble and of each encoder alone on a folder of labelled images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsorted
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clipchoir._files import find_images
from clipchoir._results import Classification
from clipchoir.errors import ClipchoirError


class UnknownClassError(ClipchoirError):
    """A folder is not named like a class of the label set."""


@dataclass(frozen=True)
class Labelled:
    """An image and the class whose folder it lies in."""

    path: Path
    label: str


def labelled_images(folder: Path) -> list[Labelled]:
    """Images of a folder that has one sub-folder per class.

    Raises:
        FileNotFoundError: there is no such folder, it has no sub-folders, or one of them holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    classes = natsorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise FileNotFoundError(f"{folder} has no sub-folders; evaluate needs one sub-folder per class")
    return [Labelled(image, path.name) for path in classes for image in find_images([path])]


@dataclass(frozen=True)
class Evaluation:
    """What was counted.

    Attributes:
        classes: names of the C classes.
        confusion: int (C, C): true class by predicted class, of the ensemble.
        encoder_hits: images that each encoder alone got right, by encoder.
        failed: results of images that could not be classified; they are in no other count.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    encoder_hits: dict[str, int]
    failed: list[Classification]

    @classmethod
    def count(cls, images: Sequence[Labelled], results: Iterable[Classification]) -> "Evaluation":
        """Count results, given in the order of the images.

        Raises:
            UnknownClassError: an image's folder is not named like a class of the label set.
        """
        confusion: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        classes: tuple[str, ...] = ()
        encoder_hits: dict[str, int] = {}
        failed: list[Classification] = []
        for image, result in zip(images, results, strict=True):
            if result.error:
                failed.append(result)
                continue
            if not classes:
                classes = result.classes
                confusion = np.zeros((len(classes), len(classes)), np.int64)
            if image.label not in classes:
                raise UnknownClassError(f'folder "{image.label}" is not a class; the classes are {", ".join(classes)}')
            truth = classes.index(image.label)
            confusion[truth, classes.index(result.label)] += 1
            for encoder, scores in result.encoder_scores.items():
                encoder_hits[encoder] = encoder_hits.get(encoder, 0) + int(scores.argmax() == truth)
        return cls(classes, confusion, encoder_hits, failed)

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
        return {encoder: self._share(hits) for encoder, hits in self.encoder_hits.items()}

    def _share(self, hits: int) -> float:
        return hits / self.total if self.total else float("nan")

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "images": self.total,
            "failed": [{"source": result.source, "error": result.error} for result in self.failed],
            "accuracy": self.accuracy if self.total else None,
            "encoder_accuracy": self.encoder_accuracy,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
            "images_per_second": (self.total + len(self.failed)) / seconds,
        }

    def render(self, seconds: float) -> RenderableType:
        """Everything, for people."""
        confusion = Table("true \\ predicted", *map(escape, self.classes), "right", title="Confusion matrix", box=None)
        for name, row, hits in zip(self.classes, self.confusion, np.diag(self.confusion), strict=True):
            right = f"{hits / row.sum():.1%}" if row.sum() else "-"
            confusion.add_row(Text(name), *(str(count) if count else "." for count in row), right)
        accuracy = Table("", "accuracy", title="Accuracy", box=None)
        accuracy.add_row("ensemble", f"{self.accuracy:.2%}")
        for encoder, share in self.encoder_accuracy.items():
            accuracy.add_row(f"{encoder} alone", f"{share:.2%}")
        images = self.total + len(self.failed)
        speed = f"{images} images in {seconds:.1f} s, {images / seconds:.0f} images/s"
        failures = [Text(f"{result.source}: {result.error}") for result in self.failed]
        return Group(confusion, "", accuracy, "", speed, *failures)
