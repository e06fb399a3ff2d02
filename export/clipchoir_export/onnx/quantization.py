"""The matrix products of a graph in 8-bit integers, for CPUs that have instructions for them (VNNI).

Weights are rounded once, each output column with a scale of its own; activations at every pass, each token with a scale
of its own. So an image's embedding does not depend on the others in its batch, as it would with ONNX's
DynamicQuantizeLinear, which has one scale for a whole batch. What is added up is exact; the rest stays in float32.
"""

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.onnx.weights import Weight, finite, weight_of

_LIMIT = 127  # of a rounded number, either way
_ZERO = 128  # where zero lies in the unsigned bytes of activations: the fast kernels want these
_SMALLEST = 1e-20  # of a token's largest number; a token of zeros must not divide by zero


def quantize_matrices(graph: ir.Graph) -> None:
    """Replace every product of tokens (N, T, K) with a weight (K, M). Products with one row an image stay as they are:
    they take no time, and the embedding itself comes out of one."""
    rounded = _Activations(graph)
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        tokens, matrix = node.inputs
        weight = weight_of(matrix)
        if tokens is None or tokens.shape is None or len(tokens.shape) != 3 or weight is None:
            continue
        low, scale = rounded.before(node, tokens)
        columns, column_scales = quantized(str(weight.name), weight.stored)
        integers = ir.node(
            "MatMulInteger",
            [low, _initializer(graph, f"{weight.name}.int8", columns), rounded.zero],
        )
        wide = ir.node("Cast", integers.outputs, attributes={"to": ir.DataType.FLOAT})
        # Not by the product of both scales: ONNX Runtime would fuse that into a node with one scale for all tokens.
        by_token = ir.node("Mul", [wide.outputs[0], scale])
        product = ir.node("Mul", [by_token.outputs[0], _initializer(graph, f"{weight.name}.scale", column_scales)])
        result, new = node.outputs[0], product.outputs[0]
        new.shape, new.type = result.shape, result.type
        result.replace_all_uses_with(new)
        graph.insert_before(node, [integers, wide, by_token, product])
        graph.remove(node, safe=True)
        assert matrix is not None and matrix.name is not None  # noqa: PT018, S101  it holds a weight
        if not matrix.uses():
            del graph.initializers[matrix.name]


def quantized(name: str, matrix: StoredTensor) -> tuple[StoredTensor, StoredTensor]:
    """A matrix (K, M) as int8 (K, M) and float32 scales (M,): what products are multiplied by, see `_Activations`.

    Reading either raises a CheckpointError where the matrix, which it names, is damaged.
    """

    def read() -> Tensor:
        return finite(name, matrix.read().float())

    def scales(columns: Tensor) -> Tensor:
        largest = columns.abs().amax(dim=0)
        return torch.where(largest == 0, 1.0, largest) / _LIMIT

    def whole() -> Tensor:
        columns = read()
        return (columns / scales(columns)).round_().to(torch.int8)

    return (
        StoredTensor(matrix.shape, torch.int8, whole),
        StoredTensor(matrix.shape[1:], torch.float32, lambda: scales(read()) / _LIMIT),
    )


class _Activations:
    """Rounds what goes into the products; what goes into several, such as queries, keys and values, once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[str, ir.Value] = {}

    @property
    def zero(self) -> ir.Value:
        """Where zero lies in the bytes."""
        return self._constant("zero", np.uint8(_ZERO))

    def before(self, node: ir.Node, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Tokens (N, T, K), before their first use, as bytes (N, T, K) and the largest of each (N, T, 1)."""
        if tokens not in self._known:
            size = ir.node("Abs", [tokens])
            axes = self._constant("axes", np.array([-1], np.int64))
            largest = ir.node("ReduceMax", [size.outputs[0], axes], attributes={"keepdims": 1})
            safe = ir.node("Max", [largest.outputs[0], self._constant("smallest", np.float32(_SMALLEST))])
            factor = ir.node("Div", [self._constant("limit", np.float32(_LIMIT)), safe.outputs[0]])
            scaled = ir.node("Mul", [tokens, factor.outputs[0]])
            shifted = ir.node("Add", [scaled.outputs[0], self._constant("shift", np.float32(_ZERO + 0.5))])
            low = ir.node("Cast", shifted.outputs, attributes={"to": ir.DataType.UINT8})  # cuts off: rounds the sum
            self._graph.insert_before(node, [size, largest, safe, factor, scaled, shifted, low])
            self._known[tokens] = low.outputs[0], safe.outputs[0]
        return self._known[tokens]

    def _constant(self, name: str, value: np.ndarray | np.generic) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = _registered(self._graph, f"quantization.{name}", ir.tensor(np.asarray(value)))
        return self._constants[name]


def _initializer(graph: ir.Graph, name: str, stored: StoredTensor) -> ir.Value:
    if name in graph.initializers:  # of two products with one weight
        return graph.initializers[name]
    return _registered(graph, name, Weight(name, stored, stored.dtype))


def _registered(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
