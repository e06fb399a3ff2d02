"""Encoder families: what their checkpoints mean. Every module of this package is one, apart from the shared ones.

A new family is one new file here: its module's name is the `source` of a spec, its `FAMILY` implements `Family`.
Nothing here imports torch, so that a spec can be checked without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from torch import nn

    from clipchoir_export.checkpoints.stored_tensors import StoredTensor
    from clipchoir_export.families.towers import Architecture, Tower
    from clipchoir_export.spec import EncoderSpec

_SHARED = {"registry", "towers"}


@dataclass(frozen=True)
class PublishedFile:
    """A weight file of a repository on the hub.

    Attributes:
        repository: its id.
        names: names that the file may have; the first that is there is taken.
    """

    repository: str
    names: tuple[str, ...]


class Family(Protocol):
    """How one kind of checkpoint becomes two towers.

    `path` is the checkpoint's file or folder. `describe` and `image_tower` must manage where it does not exist and
    the spec names the architecture.
    """

    published_names: str
    """What a checkpoint may be beside a path and a hub id, for messages; empty if nothing."""

    def describe(self, encoder: EncoderSpec, path: Path) -> Architecture:
        """What the repository has to know of an encoder; no weight file is opened.

        Raises:
            CheckpointError: the architecture is unknown, or the checkpoint's config cannot be read or asks for what
                a repository cannot do; the message names the key.
        """

    def identity(self, encoder: EncoderSpec, path: Path) -> Mapping[str, Any]:
        """All that the embeddings depend on beside the weights and the family, as JSON can write it."""

    def image_tower(self, encoder: EncoderSpec, path: Path) -> nn.Module:
        """The image tower, uninitialised, on torch's default device."""

    def open_towers(
        self, encoder: EncoderSpec, path: Path, tensors: Mapping[str, StoredTensor], *, fused_qkv: bool
    ) -> tuple[Tower, Tower]:
        """The image tower and the text tower of a checkpoint; no weight is read.

        Args:
            encoder: what the spec says of it.
            path: the checkpoint.
            tensors: all of the checkpoint's.
            fused_qkv: join the projections for queries, keys and values where the checkpoint keeps them apart.

        Raises:
            CheckpointError: keys are missing or unexpected, or shapes differ; the message names them.
        """

    def published_file(self, encoder: EncoderSpec) -> PublishedFile | None:
        """The file on the hub that the family knows under the name in `checkpoint`; None: it knows no such name.

        Raises:
            CheckpointError: this is a name of the family's kind, but unknown; the message lists the known ones.
        """


def family_names() -> list[str]:
    """Values that `source` may have."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def find_family(name: str) -> Family:
    """The family of this name, one of `family_names()`; its module is imported now."""
    return cast(Family, importlib.import_module(f"{__name__}.{name}").FAMILY)
