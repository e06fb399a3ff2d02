"""Encoders whose matrix products are 8-bit integers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from clipchoir_export.build import verification
from clipchoir_export.checkpoints.stored_tensors import StoredTensor
from clipchoir_export.errors import CheckpointError
from clipchoir_export.onnx.quantization import quantized
from clipchoir_export.spec import Dialect
from tests.support import checkpoints
from tests.unit.test_export import KINDS, cosines_to_the_plain_way, encoder_spec, export_image_encoder, write_checkpoint


def stored(tensor: torch.Tensor) -> StoredTensor:
    return StoredTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def embeddings(model: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    (found,) = onnxruntime.InferenceSession(model / "model.onnx").run(["embedding"], {"pixels": pixels})
    return np.asarray(found)


@pytest.mark.parametrize("dialect", ["portable", "current"])
@pytest.mark.parametrize("kind", KINDS)
def test_int8_stays_close_to_an_independent_forward_pass(tmp_path: Path, kind: str, dialect: Dialect) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    spec = encoder_spec(folder, source)
    export_image_encoder(spec, tmp_path / "model", "int8", dialect)
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    cosines = cosines_to_the_plain_way(session, folder, source, spec.sharpness)
    assert 0.999 < cosines.min() < 0.9999999  # close, but not float32 under another name


def test_an_image_does_not_depend_on_the_others_in_its_batch(tmp_path: Path) -> None:
    spec = encoder_spec(checkpoints.write_open_clip(tmp_path / "checkpoint"), "open_clip")
    export_image_encoder(spec, tmp_path / "model", "int8")
    pixels = np.concatenate([np.full((1, 224, 224, 3), 9, np.uint8), verification.sample_images(7, 224)])
    together = embeddings(tmp_path / "model", pixels)
    for row, image in enumerate(pixels):
        np.testing.assert_allclose(embeddings(tmp_path / "model", image[None])[0], together[row], atol=1e-4)


@pytest.mark.parametrize("dialect", ["portable", "current"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_products_of_tokens_with_weights_are_of_integers(tmp_path: Path, kind: str, dialect: Dialect) -> None:
    source, folder = write_checkpoint(tmp_path / "checkpoint", kind)
    for precision in ("fp32", "int8"):
        export_image_encoder(encoder_spec(folder, source), tmp_path / precision, precision, dialect)
    whole, rounded = (onnx.load(tmp_path / precision / "model.onnx") for precision in ("fp32", "int8"))
    onnx.checker.check_model(rounded, full_check=True)
    weights = {tensor.name for tensor in whole.graph.initializer}
    products = [node for node in whole.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    integers = [node for node in rounded.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) - 1 <= len(integers) <= len(products)  # the last one makes the embedding
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in rounded.graph.initializer}
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    for node in integers:
        name = node.input[1].removesuffix(".int8")
        scale = kept[f"{name}.scale"] * 127
        assert kept[node.input[1]].dtype == np.int8
        np.testing.assert_allclose(kept[node.input[1]] * scale, before[name], atol=scale.max() / 2 * 1.0001)
        assert name not in kept


def test_columns_of_zeros_and_of_one_number() -> None:
    columns, scales = quantized("mlp", stored(torch.tensor([[0.0, 3.0, -1e-3], [0.0, 3.0, 5e-4]])))
    assert columns.read().tolist() == [[0, 127, -127], [0, 127, 64]]
    np.testing.assert_allclose(scales.read()[1:] * 127 * 127, [3.0, 1e-3], rtol=1e-6)
    assert torch.isfinite(scales.read()).all()


@pytest.mark.parametrize("damage", [float("inf"), float("nan")])
def test_a_damaged_matrix_is_named(damage: float) -> None:
    for each in quantized("mlp", stored(torch.tensor([[1.0, damage]]))):
        with pytest.raises(CheckpointError, match=r"mlp holds values that are not finite; the checkpoint is damaged"):
            each.read()
