"""Tensors in checkpoint files, read one at a time: safetensors and pickles, whole or in shards.

Both are read by position, not through a memory map, so that what has been read does not stay in memory. Pickles are
opened with `weights_only=True`: they may hold tensors and plain values, never code.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipchoir_export.checkpoints.stored_tensors import FileSlice, StoredTensor
from clipchoir_export.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # names of the safetensors format
_HEADER_LIMIT = 100_000_000  # bytes, the format's own
# What a folder may hold, in order of preference: safetensors before pickles, hub names before others.
INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "model.safetensors",
    "*.safetensors",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "*.bin",
    "*.pt",
    "*.pth",
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PARALLEL = "module."  # put before every name by torch's DataParallel


def checkpoint_files(path: Path) -> list[Path]:
    """The weight files of a checkpoint: the file itself, or those of a folder, shards in order of their names.

    Raises:
        CheckpointError: there is none, or a shard is missing.
    """
    if path.is_file():
        return [path]
    for pattern in WEIGHT_FILES:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(f"{path} holds several weight files and no index: {names}; name the one to use")
        if found:
            return _shards(found[0]) if pattern.endswith(INDEX_SUFFIX) else found
    raise CheckpointError(f"{path} holds no weights: no .safetensors, .bin, .pt or .pth file")


def open_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint file or folder, by name; no weight is read yet.

    Raises:
        CheckpointError: a file is missing, unreadable, truncated or holds more than tensors and plain values.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in checkpoint_files(path):
        part = _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)
        if twice := tensors.keys() & part.keys():
            raise CheckpointError(f"{file}: {sorted(twice)[0]} is in another shard, too")
        tensors |= part
    if tensors and all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index of shards lists.

    Raises:
        CheckpointError: this is no such index, or it names files in other folders.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: cannot be read as an index of shards: {error}") from error
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f'{index}: shard "{name}" is not a file beside the index')
    return names


def _shards(index: Path) -> list[Path]:
    names = shard_names(index)
    for name in names:
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing; {index.name} names {len(names)} shards")
    return [index.parent / name for name in names]


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, _HEADER_LIMIT):
                raise CheckpointError(f"{path}: cannot be read as safetensors: its header is truncated")
            header = json.loads(file.read(length))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = _stored_tensor(path, name, entry, start=8 + length, size=size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    return tensors


def _stored_tensor(path: Path, name: str, entry: Mapping[str, Any], start: int, size: int) -> StoredTensor:
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = (start + offset for offset in entry["data_offsets"])
    if not start <= begin <= end <= size:
        raise CheckpointError(f"{path}: is truncated: {name} ends at byte {end:,}, the file has {size:,}")
    if end - begin != torch.Size(shape).numel() * dtype.itemsize:
        raise CheckpointError(f"{path}: {name} has {end - begin:,} bytes, which do not fit its shape {shape}")

    return _in_file(FileSlice(path, begin, end - begin), shape, dtype)


def _in_file(where: FileSlice, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    def read() -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        _read_at(where.path, where.offset, tensor.flatten().view(torch.uint8).numpy().data)
        return tensor

    return StoredTensor(shape, dtype, read, where)


def _read_at(path: Path, offset: int, view: memoryview) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(descriptor, [view], offset)  # at most 2 GB at a time
            if count == 0:
                raise CheckpointError(f"{path}: ended while it was read")
            view, offset = view[count:], offset + count
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    content = _load_pickle(path)
    for wrapper in _WRAPPERS:  # training checkpoints keep the weights beside optimizer state
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name} is {type(tensor).__name__}, not a tensor")
    return {name: _pickled_tensor(path, tensor) for name, tensor in content.items()}


def _pickled_tensor(path: Path, tensor: Tensor) -> StoredTensor:
    """A tensor of `torch.load`: on the meta device its storage knows where in the file its bytes begin."""
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if not tensor.is_meta:
        return StoredTensor(shape, dtype, tensor.detach().clone)
    storage = tensor.untyped_storage()
    begin = int(storage._checkpoint_offset or 0)
    if tensor.is_contiguous():
        begin += int(tensor.storage_offset()) * dtype.itemsize
        return _in_file(FileSlice(path, begin, tensor.numel() * dtype.itemsize), shape, dtype)
    whole = _in_file(FileSlice(path, begin, storage.nbytes()), (storage.nbytes() // dtype.itemsize,), dtype)
    strides, offset = tensor.stride(), tensor.storage_offset()
    return StoredTensor(shape, dtype, lambda: whole.read().as_strided(shape, strides, offset))


def _load_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"  # torch 1.6 and later
        return torch.load(path, map_location="meta" if is_zip else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is no checkpoint of tensors and plain values: {str(error).splitlines()[0]}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a PyTorch checkpoint: {error}") from error
