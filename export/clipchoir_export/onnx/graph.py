"""A served module -> its ONNX graph, with every weight still where the checkpoint stores it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript.optimizer._constant_folding import FoldConstantsPass
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as common_rules
from torch import Tensor, nn

from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError
from clipchoir_export.onnx.quantization import quantize_matrices
from clipchoir_export.onnx.weights import Weight, onnx_tensor, weight_of
from clipchoir_export.spec import Dialect, Precision

OPSETS: Mapping[Dialect, int] = {"portable": 18, "current": 23}
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,  # of all that is not quantised
}
_TOWER = "tower."
_FOLDED_UP_TO = 1024  # elements


@dataclass(frozen=True)
class Signature:
    """The one input and the one output of a served module; the first axis of both is the batch.

    Attributes:
        input: its name.
        shape: of one row of the input.
        dtype: of the input.
        output: its name.
    """

    input: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    output: str = "embedding"


def trace(
    module: nn.Module,
    signature: Signature,
    weights: Mapping[str, StoredTensor],
    precision: Precision,
    dialect: Dialect,
    keep_layout: bool = False,
) -> ir.Model:
    """Graph of a served module whose `tower` is a skeleton.

    Args:
        module: takes and returns one tensor.
        signature: names and types of the two.
        weights: of the tower.
        precision: the type of the tower's weights and matrix products. Softmax and the sums in norms are float32. For
            "int8" see `quantization`.
        dialect: which operators to use.
        keep_layout: leave weights as they are stored, and transpose in the graph.

    Returns:
        The graph; its initializers are `Weight`s, besides small constants.
    """
    module.get_submodule("tower").to(DTYPES[precision])
    constants = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.to("meta")
    # An example batch of 1 would fix the batch size, silently.
    example = torch.empty((2, *signature.shape), dtype=signature.dtype, device="meta")
    with _quietly(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            optimize=False,  # it would fold weights that are not there
            opset_version=OPSETS[dialect],
            input_names=[signature.input],
            output_names=[signature.output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None  # noqa: S101  None is for the exporter's older way alone
    model = program.model
    _bind(model.graph, weights, constants, DTYPES[precision])
    _transpose_weights(model.graph, keep_layout)
    _simplify(model)
    _cast_bytes_first(model.graph)
    if precision == "int8":
        quantize_matrices(model.graph)
    elif precision != "fp32":
        _softmax_in_float32(model.graph)
    if precision == "bf16" and OPSETS[dialect] < 22:
        _convolution_in_float32(model.graph)
    return model


def _simplify(model: ir.Model) -> None:
    """Fold what is constant besides the weights. Not `optimize_ir`: its rewriting rules would take most of a giant's
    export; the few that matter to these graphs take none of it."""
    passes = [
        common_passes.InlinePass(),
        FoldConstantsPass(
            shape_inference=True,
            input_size_limit=_FOLDED_UP_TO,
            output_size_limit=_FOLDED_UP_TO,
            should_fold=lambda node: False if any(weight_of(value) for value in node.inputs) else None,
        ),
        RewritePass([common_rules.materialize_reshape_shape_rule]),
        RewritePass([common_rules.reshape_reshape_rule, common_rules.remove_optional_bias_from_conv_rule]),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedFunctionsPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.NameFixPass(),
        common_passes.ClearMetadataAndDocStringPass(),
    ]
    for each in passes:
        each(model)


def _bind(
    graph: ir.Graph, weights: Mapping[str, StoredTensor], constants: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    for name, value in graph.initializers.items():
        key = name.removeprefix(_TOWER)
        if name in constants:
            value.const_value = onnx_tensor(constants[name], name)
        elif name.startswith(_TOWER) and key in weights:
            value.const_value = Weight(name, weights[key], dtype)
        else:
            raise CheckpointError(f"the graph needs {name}, which is computed and in no checkpoint; not supported")


def _transpose_weights(graph: ir.Graph, keep_layout: bool) -> None:
    """Store matrices the way that the graph uses them, instead of transposing them at every start."""
    for node in list(graph):
        weight = weight_of(node.inputs[0]) if node.op_type == "Transpose" else None
        if weight is None or len(weight.stored.shape) != 2:
            continue
        if keep_layout and weight.is_stored_as_it_is:
            continue
        name = f"{weight.name}.T"
        transposed = ir.Value(name=name, type=ir.TensorType(weight.dtype), shape=ir.Shape(weight.stored.shape[::-1]))
        transposed.const_value = Weight(name, weight.stored.transposed(), weight.target)
        graph.register_initializer(transposed)
        node.outputs[0].replace_all_uses_with(transposed)
        graph.remove(node, safe=True)


def _cast_bytes_first(graph: ir.Graph) -> None:
    """TensorRT takes bytes into a Cast and into no other node, not even into Shape: let these use what is cast."""
    (source,) = graph.inputs
    casts = [node for node in source.consumers() if node.op_type == "Cast"]
    if source.dtype != ir.DataType.UINT8 or not casts:
        return
    cast = casts[0]
    graph.remove(cast)
    graph.insert_before(graph[0], cast)
    for node, index in tuple(source.uses()):
        if node is not cast:
            node.replace_input_with(index, cast.outputs[0])


def _softmax_in_float32(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", ir.DataType.FLOAT)
        elif node.op_type == "Softmax":
            _between_casts(graph, node)


def _convolution_in_float32(graph: ir.Graph) -> None:
    """ONNX has bfloat16 convolutions from opset 22 on only. There is one in a tower, the patch embedding."""
    for node in list(graph):
        low = node.inputs[0]
        if node.op_type != "Conv" or low is None or low.dtype != ir.DataType.BFLOAT16:
            continue
        for value in node.inputs[1:]:
            weight = weight_of(value)
            assert value is not None and weight is not None  # noqa: PT018, S101
            value.const_value = Weight(weight.name or "", weight.stored, torch.float32)
            value.type = ir.TensorType(ir.DataType.FLOAT)
        _between_casts(graph, node)


def _between_casts(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node of one data input and one output compute in float32."""
    low, result = node.inputs[0], node.outputs[0]
    assert low is not None and low.dtype is not None  # noqa: PT018, S101
    widen = ir.node("Cast", [low], attributes={"to": ir.DataType.FLOAT})
    narrow = ir.node("Cast", [result], attributes={"to": low.dtype})
    wide, narrowed = widen.outputs[0], narrow.outputs[0]
    result.replace_all_uses_with(narrowed)
    narrow.replace_input_with(0, result)
    node.replace_input_with(0, wide)
    wide.shape, narrowed.shape = low.shape, result.shape
    narrowed.type = ir.TensorType(low.dtype)
    wide.type = result.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, widen)
    graph.insert_after(node, narrow)


@contextlib.contextmanager
def _quietly():  # type: ignore[no-untyped-def]
    """The exporter prints its steps and warns of its own future; neither helps a user."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
