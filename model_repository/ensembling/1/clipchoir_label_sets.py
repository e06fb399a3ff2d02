"""The text embeddings of a label set, in memory and as one safetensors file."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_COUNTS = "prompt_counts"


class LabelSetFileError(Exception):
    """A label set file cannot be used; the message names the file and the next step."""


class UnknownLabelSetError(KeyError):
    """No label set has this name; the message lists the ones there are."""

    def __str__(self) -> str:
        return str(self.args[0])


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

    def save(self, path: Path) -> None:
        """Write beside `path`, then rename: a reader never sees half a file."""
        part = path.with_name(f".{path.name}.part")
        metadata = {
            "classes": json.dumps(self.classes),
            "prompts": json.dumps(self.prompts),
            "fingerprints": json.dumps(dict(self.fingerprints)),
        }
        part.write_bytes(save({_COUNTS: self.prompt_counts, **self.embeddings}, metadata))
        part.replace(path)

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
                fingerprints=json.loads(metadata["fingerprints"]),
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
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


class NamedLabelSets:
    """The label sets that were built into the repository, by name."""

    def __init__(self, folder: Path, fingerprints: Mapping[str, str]) -> None:
        """Load every file of the folder.

        Raises:
            LabelSetFileError: a file is unreadable or was made with other encoders.
        """
        paths = sorted(folder.glob("*.safetensors"))
        self._by_name = {path.stem: EmbeddedLabelSet.load(path, fingerprints) for path in paths}

    def __getitem__(self, name: str) -> EmbeddedLabelSet:
        """Raises `UnknownLabelSetError`."""
        if name not in self._by_name:
            known = ", ".join(self._by_name) or "none"
            raise UnknownLabelSetError(f'label set "{name}" is not in this repository, which has: {known}')
        return self._by_name[name]
