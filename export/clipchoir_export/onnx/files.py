"""Graph -> `model.onnx`, its weights streamed from the checkpoint or left in the checkpoint's own files."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from clipchoir_export.onnx.weights import Weight
from clipchoir_steps.layout import MODEL

DATA = f"{MODEL}.data"
_INLINE_UP_TO = 64 << 20  # bytes of weights in model.onnx itself; one file is easier to handle
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay in model.onnx
_IN_FLIGHT = 512 << 20  # bytes of weights in memory while writing
_WRITERS = 2
_PAGE = 4096  # bytes; mapped weights start on a page of their own

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """What a model's folder holds."""

    bytes_written: int
    bytes_linked: int = 0
    linked_files: Sequence[str] = field(default_factory=list)
    not_linked: str | None = None  # why weights were copied although links were asked for


def weight_bytes(model: ir.Model) -> int:
    """Size of all weights, in the type that they are written in."""
    return sum(weight.nbytes for weight in _weights(model))


def write_model(model: ir.Model, folder: Path, advance: Advance, link: bool = False) -> Written:
    """Write `model.onnx`, and `model.onnx.data` where the weights are many.

    Args:
        model: as `onnx_graph.trace` returns it.
        folder: where to; it exists.
        advance: called with the bytes of weights written since its last call.
        link: leave weights in the checkpoint's files where they are stored as the graph needs them; hard links to
            those files appear beside `model.onnx`.

    Raises:
        CheckpointError: a weight cannot be read, or the graph's type cannot hold it.
        OSError: the folder cannot be written.
    """
    total = weight_bytes(model)
    linked, not_linked = _link(model, folder) if link else ({}, None)
    if total > _INLINE_UP_TO or linked:
        lock = threading.Lock()

        def done(tensor: ir.TensorProtocol, _: object) -> None:
            with lock:
                advance(tensor.nbytes)

        copied = [weight for weight in _weights(model) if weight.nbytes >= _EXTERNAL_FROM]
        external = ir.external_data.convert_tensors_to_external(
            copied, folder, DATA, done, max_workers=_WRITERS, max_in_flight_bytes=_IN_FLIGHT, alignment=_PAGE
        )
        by_name = {weight.name: tensor for weight, tensor in zip(copied, external, strict=True)}
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, Weight) and value.name in by_name:
                value.const_value = by_name[value.name]
        advance(total - sum(weight.nbytes for weight in copied))
    else:
        advance(total)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, Weight):  # read here, so that what reading raises is not wrapped by `save`
            value.const_value = value.const_value.raw()
    ir.save(model, folder / MODEL)
    written = sum(path.stat().st_size for path in (folder / MODEL, folder / DATA) if path.exists())
    bytes_linked = sum(linked.values())
    return Written(written, bytes_linked, sorted(linked), not_linked)


def _weights(model: ir.Model) -> list[Weight]:
    values = (value.const_value for value in model.graph.initializers.values())
    return [value for value in values if isinstance(value, Weight)]


def _link(model: ir.Model, folder: Path) -> tuple[dict[str, int], str | None]:
    """Point initializers at the checkpoint's bytes. Returns bytes by file, and why the rest was not linked."""
    weights = [weight for weight in _weights(model) if weight.nbytes >= _EXTERNAL_FROM]
    fitting = [weight for weight in weights if weight.is_stored_as_it_is]
    linked: dict[str, int] = {}
    reason = None
    if len(fitting) < len(weights):
        example = next(weight for weight in weights if not weight.is_stored_as_it_is)
        stored, target = (str(dtype).removeprefix("torch.") for dtype in (example.stored.dtype, example.target))
        kind = f"{stored}, the graph needs {target}" if stored != target else "in another layout"
        reason = f"{len(weights) - len(fitting)} of {len(weights)} weights are stored as {kind} ({example.name})"
    external: dict[str | None, ir.ExternalTensor] = {}
    for weight in fitting:
        where = weight.stored.slice
        assert where is not None  # noqa: S101
        target_file = folder / where.path.name
        if where.path.name not in linked:
            try:
                os.link(where.path.resolve(), target_file)
            except OSError as error:
                return {}, f"{where.path} cannot be linked into {folder}: {error.strerror}"
        linked[where.path.name] = linked.get(where.path.name, 0) + where.length
        external[weight.name] = ir.ExternalTensor(
            where.path.name,
            where.offset,
            where.length,
            weight.dtype,
            shape=ir.Shape(weight.stored.shape),
            name=weight.name or "",
            base_dir=folder,
        )
    for value in model.graph.initializers.values():
        if value.name in external:
            value.const_value = external[value.name]
    return linked, reason


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU that leaves the weights in their file.

    The defaults would make a second copy of them: folded, packed for its matrix products, widened to float32.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False  # it would keep the widened copy of every weight until the end
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
