"""Every key and every shape of a checkpoint has to match the architecture, and its config what can be computed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError

StateDict = dict[str, Tensor]
_LISTED = 8


def check_keys(missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise a `CheckpointError` that names the keys, unless both collections are empty."""
    problems = []
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            listed = ", ".join(sorted(names)[:_LISTED])
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            problems.append(f"{len(names)} {kind} keys: {listed}{more}")
    if problems:
        raise CheckpointError("; ".join(problems))


def check_shapes(expected: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Check that `stored` fits a module's `state_dict`, whose tensors may be on the meta device.

    Raises:
        CheckpointError: a key is missing or unexpected, or a shape or type differs; the message names them.
    """
    check_keys(missing=expected.keys() - stored.keys(), unexpected=stored.keys() - expected.keys())
    for name, tensor in expected.items():
        if stored[name].shape != tuple(tensor.shape):
            raise CheckpointError(f"{name} has shape {stored[name].shape}, the architecture has {tuple(tensor.shape)}")
        if not stored[name].dtype.is_floating_point and tensor.dtype.is_floating_point:
            raise CheckpointError(f"{name} is of type {_name(stored[name].dtype)}; weights are floating-point")


@dataclass(frozen=True)
class Only:
    """The values that a key of a config may have, and why no others."""

    values: tuple[Any, ...]
    why: str


def check_config(section: str, config: Any, known: Collection[str], only: Mapping[str, Only]) -> None:
    """Check that all of a config's section is used or known to be without effect.

    Args:
        section: its name, for messages.
        config: the section as JSON has it.
        known: keys that are used, or that change no embedding.
        only: keys that may have certain values alone.

    Raises:
        CheckpointError: a key is unknown, or has another value; the message names both.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{section} is {config!r}, not a table of keys")
    for key, value in config.items():
        if key in only and value not in only[key].values:
            raise CheckpointError(f"{section}.{key} is {value!r}; {only[key].why}")
        if key not in known and key not in only:
            raise CheckpointError(
                f"{section}.{key} is {value!r}; this key is not known here, and might change what the model computes"
            )


def without_nulls(section: Any) -> Any:
    """What a section of a config says, where null stands for what is not set, as transformers writes it."""
    return {key: value for key, value in section.items() if value is not None} if isinstance(section, dict) else section


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
