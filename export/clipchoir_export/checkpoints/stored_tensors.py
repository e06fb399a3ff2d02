"""Tensors that stay where they are stored until they are needed, and the identity of the whole they belong to."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class FileSlice:
    """Where a tensor's bytes lie, contiguous and in row-major order."""

    path: Path
    offset: int  # bytes
    length: int  # bytes


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or made of such tensors; `read` brings it into memory.

    Attributes:
        shape: shape of the tensor that `read` returns.
        dtype: type of that tensor.
        read: reads the file again at every call, from any thread.
        slice: the bytes themselves, where the tensor is stored exactly as `read` returns it; otherwise None.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    slice: FileSlice | None = None

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def reshaped(self, shape: tuple[int, ...]) -> "StoredTensor":
        """The same numbers in another shape."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def transposed(self) -> "StoredTensor":
        """A matrix with rows and columns exchanged."""
        return StoredTensor(self.shape[::-1], self.dtype, lambda: self.read().t())


def concatenated(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Tensors of one kind joined along their first axis."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def read() -> Tensor:
        joined = torch.empty(shape, dtype=parts[0].dtype)
        start = 0
        for part in parts:
            joined[start : start + part.shape[0]] = part.read()
            start += part.shape[0]
        return joined

    return StoredTensor(shape, parts[0].dtype, read)


class Digests:
    """sha256 of every tensor of a checkpoint, taken when it is first read: hashing costs no reading of its own."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._originals = tensors
        self._digests: dict[str, str] = {}
        self.tensors: Mapping[str, StoredTensor] = {
            name: replace(tensor, read=self._watched(name, tensor)) for name, tensor in tensors.items()
        }

    def fingerprint(self) -> str:
        """Identity of the weights, in hex: sha256 over every tensor's name, type, shape and content.

        It is the same for the same weights in other files. What has not been read so far is read now.
        """
        for name, tensor in self.tensors.items():
            if name not in self._digests:
                tensor.read()
        content = [
            [name, str(tensor.dtype), list(tensor.shape), self._digests[name]]
            for name, tensor in sorted(self._originals.items())
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _watched(self, name: str, original: StoredTensor) -> Callable[[], Tensor]:
        def read() -> Tensor:
            tensor = original.read()
            if name not in self._digests:
                flat = tensor.contiguous().flatten()
                self._digests[name] = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
            return tensor

        return read
