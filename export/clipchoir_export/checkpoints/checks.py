"""Every key and every shape of a checkpoint has to match the architecture."""

from collections.abc import Collection, Mapping

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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
