"""Sharpening inside the encoders' graphs against PIL's own."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from clipchoir_export.onnx.modules import Sharpen
from tests.conftest import SAMPLES

FACTORS = {"metaclip": 2.3, "evaclip": 2.0}


def by_pil(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    return np.stack([np.asarray(ImageEnhance.Sharpness(Image.fromarray(each)).enhance(factor)) for each in pixels])


def random_pixels(count: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(7)
    noisy = random.integers(0, 256, (count, 224, 224, 3), np.uint8)
    extreme = random.choice(np.array([0, 1, 127, 254, 255], np.uint8), (count, 224, 224, 3))
    return np.concatenate([noisy, extreme])


def real_pixels() -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in SAMPLES])


@pytest.mark.parametrize("encoder", FACTORS)
@pytest.mark.parametrize("pixels", [random_pixels, real_pixels])
@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED"])  # float32 and half precision are served so
def test_the_built_graphs_sharpen_bit_for_bit_like_pil(
    repository: Path, encoder: str, pixels: object, level: str
) -> None:
    model = onnx.load(repository / encoder / "1" / "model.onnx")
    last_floor = [node for node in model.graph.node if node.op_type == "Floor"][-1].output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last_floor, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    images = random_pixels(4) if pixels is random_pixels else real_pixels()
    for part in np.split(images, range(16, len(images), 16)):
        (sharpened,) = session.run([last_floor], {"pixels": part})
        assert (sharpened == by_pil(part, FACTORS[encoder]).transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5, 2.0, 2.3, 3.7])
def test_the_torch_module_sharpens_bit_for_bit_like_pil(factor: float) -> None:
    images = random_pixels(4)
    sharpened = Sharpen(factor, 224)(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    assert (sharpened.numpy() == by_pil(images, factor).transpose(0, 3, 1, 2)).all()
