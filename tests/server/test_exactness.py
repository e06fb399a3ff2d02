"""Triton's answers against PIL, torch and float64, for the demo pair on the sample images."""

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image

from tests.conftest import ROOT, SAMPLES, infer
from tests.support import reference

SCENES = ROOT / "export" / "label_sets" / "scenes.toml"
OUTPUTS = ["scores", "encoder_scores", "label", "metaclip_embedding", "evaclip_embedding"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    assert len(SAMPLES) >= 60
    return [reference.pixels(Image.open(path)) for path in SAMPLES]


@pytest.fixture(scope="module")
def expected(images: list[Image.Image]) -> reference.Expected:
    return reference.classify(images, SCENES)


@pytest.mark.parametrize("batch", [1, 7, 32, 64])
def test_scores_equal_the_formula_in_any_batch(
    triton: grpcclient.InferenceServerClient, expected: reference.Expected, batch: int
) -> None:
    order = np.random.default_rng(batch).permutation(len(SAMPLES))
    for part in np.split(order, range(batch, len(order), batch)):
        answer = infer(triton, [SAMPLES[index].read_bytes() for index in part], OUTPUTS)
        np.testing.assert_allclose(answer["scores"], expected.scores[part], atol=1e-4)
        np.testing.assert_allclose(answer["encoder_scores"], expected.encoder_scores[part], atol=1e-4)
        for encoder, embeddings in expected.embeddings.items():
            np.testing.assert_allclose(answer[f"{encoder}_embedding"], embeddings[part], atol=2e-5)


def test_pixels_equal_pils_resize(triton: grpcclient.InferenceServerClient, images: list[Image.Image]) -> None:
    for start in range(0, len(SAMPLES), 20):
        rows = [path.read_bytes() for path in SAMPLES[start : start + 20]]
        image = grpcclient.InferInput("image", [len(rows), 1], "BYTES")
        image.set_data_from_numpy(np.array([[row] for row in rows], np.object_))
        pixels = triton.infer("preprocess", [image]).as_numpy("pixels")
        assert pixels.dtype == np.uint8
        for actual, squashed in zip(pixels, images[start:], strict=False):
            assert (actual == np.asarray(squashed)).all()
