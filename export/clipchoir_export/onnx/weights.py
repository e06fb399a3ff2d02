"""Initializers of a graph that stay in the checkpoint until they are written."""

import onnx_ir as ir
import torch
from torch import Tensor

from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError

_ONNX_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int8: ir.DataType.INT8,
}


class Weight(ir.LazyTensor):
    """An initializer of the graph that a checkpoint's tensor becomes when it is written."""

    def __init__(self, name: str, stored: StoredTensor, dtype: torch.dtype) -> None:
        super().__init__(self._cast, _ONNX_TYPES[dtype], ir.Shape(stored.shape), name=name)
        self.stored = stored
        self.target = dtype

    def _cast(self) -> ir.TensorProtocol:
        stored = self.stored.read()
        tensor = stored.to(self.target).contiguous()
        if not _is_finite(tensor):
            finite(str(self.name), stored)
            kind = str(self.target).removeprefix("torch.")
            raise CheckpointError(
                f"{self.name} reaches {stored.abs().max():.3g}, which {kind} cannot hold; build with bf16 or fp32"
            )
        return onnx_tensor(tensor, self.name)

    @property
    def is_stored_as_it_is(self) -> bool:
        """Whether the checkpoint's own bytes can serve as the initializer."""
        return self.stored.slice is not None and self.stored.dtype == self.target


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        CheckpointError: it holds values that are not finite.
    """
    if not _is_finite(tensor):
        raise CheckpointError(f"{name} holds values that are not finite; the checkpoint is damaged")
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """One pass without temporaries: many times faster than `torch.isfinite` on half precision."""
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)) if tensor.numel() else True


def onnx_tensor(tensor: Tensor, name: str | None) -> ir.TensorProtocol:
    """A tensor in memory for a graph."""
    if tensor.dtype == torch.bfloat16:  # numpy has no such type
        return ir.Tensor(tensor.view(torch.uint16).numpy(), dtype=ir.DataType.BFLOAT16, name=name)
    return ir.tensor(tensor.numpy(), name=name)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The weight that an initializer is, if it is one."""
    return value.const_value if value is not None and isinstance(value.const_value, Weight) else None
