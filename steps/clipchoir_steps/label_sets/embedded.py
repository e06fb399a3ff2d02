"""The text embeddings of a label set, in memory and as one safetensors file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipchoir_steps import atomic
from clipchoir_steps.scoring.formula import Texts
from clipchoir_steps.scoring.options import SOFTMAX_MEAN

_COUNTS = "prompt_counts"


class LabelSetFileError(Exception):
    """A label set file cannot be used; the message names the file and the next step."""


@dataclass(frozen=True)
class EmbeddedLabelSet:
    """A label set and its prompts' embeddings by every encoder.

    Attributes:
        classes: C class names.
        prompts: P prompts, class after class.
        prompt_counts: how many of them each class has, int64 (C,).
        embeddings: by encoder, float32 (P, D), each row of length 1.
        fingerprints: by encoder, which checkpoint computed them.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    prompt_counts: NDArray[np.int64]
    embeddings: Mapping[str, NDArray[np.float32]]
    fingerprints: Mapping[str, str]
    _texts: dict[tuple[str, str], Texts] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def nbytes(self) -> int:
        """What it takes in memory, about: the embeddings, what is made of them once asked for, and the words."""
        per_prompt = sum(each[:1].nbytes for each in self.embeddings.values())
        distinct = len(set(self.prompts))
        rows = len(self.prompts) + len(self.classes) + (distinct if distinct < len(self.prompts) else 0)
        return per_prompt * rows + 4 * sum(len(text) for text in (*self.classes, *self.prompts))

    def texts(self, encoder: str, aggregate: str) -> Texts:
        """What images are compared with; made once."""
        key = encoder, aggregate
        if key not in self._texts:
            self._texts[key] = Texts.of(self.embeddings[encoder], self.prompt_counts, aggregate)
        return self._texts[key]

    def description(self) -> dict[str, object]:
        """For people: everything but the embeddings."""
        edges = np.cumsum(self.prompt_counts).tolist()
        prompts = [self.prompts[start:end] for start, end in zip([0, *edges], edges, strict=False)]
        return {
            "classes": list(self.classes),
            "prompts": dict(zip(self.classes, prompts, strict=True)),
            "fingerprints": dict(self.fingerprints),
        }

    def save(self, path: Path) -> None:
        """Write the file; a reader never sees half of it."""
        metadata = {
            "classes": json.dumps(self.classes),
            "prompts": json.dumps(self.prompts),
            "fingerprints": json.dumps(dict(self.fingerprints)),
        }
        atomic.write_bytes(path, save({_COUNTS: self.prompt_counts, **self.embeddings}, metadata))

    @classmethod
    def load(cls, path: Path, fingerprints: Mapping[str, str]) -> "EmbeddedLabelSet":
        """Read a file and check that it belongs to these encoders.

        Raises:
            LabelSetFileError: the file is unreadable or was made with other encoders.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            counts = tensors.pop(_COUNTS)
            label_set = cls(
                classes=tuple(json.loads(metadata["classes"])),
                prompts=tuple(json.loads(metadata["prompts"])),
                prompt_counts=counts,
                embeddings=tensors,
                fingerprints=dict(json.loads(metadata["fingerprints"])),
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise LabelSetFileError(f"{path} is not a label set file ({error}); build the repository again") from error
        if not label_set._is_whole(fingerprints):
            raise LabelSetFileError(f"{path}: its arrays do not fit together; build the repository again")
        for encoder, expected in fingerprints.items():
            found = label_set.fingerprints.get(encoder)
            if found != expected:
                raise LabelSetFileError(
                    f"{path} was embedded by {encoder} {found}, this repository serves {encoder} {expected}; "
                    "build the repository again"
                )
            label_set.texts(encoder, SOFTMAX_MEAN)  # here, where no request waits for it
        return label_set

    def _is_whole(self, encoders: Iterable[str]) -> bool:
        """Whether counts, prompts and every encoder's embeddings are of one size."""
        total = len(self.prompts)
        return (
            self.prompt_counts.shape == (len(self.classes),)
            and bool((self.prompt_counts > 0).all())
            and int(self.prompt_counts.sum()) == total
            and all(encoder in self.embeddings for encoder in encoders)
            and all(each.ndim == 2 and len(each) == total for each in self.embeddings.values())
            and all(each.dtype == np.float32 for each in self.embeddings.values())
        )
