"""Decoding large JPEGs at a fraction of their size: how close it stays to the exact way, and when it is not used."""

import io
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipchoir_steps.preprocess.batch import Batch, Decoder
from clipchoir_steps.preprocess.decode import ErrorKind, Limits
from clipchoir_steps.preprocess.settings import Settings
from demo import scenes
from tests.conftest import ROOT, encoded, noise
from tests.support import reference

LIMITS = Limits(max_bytes=16 << 20, max_pixels=89_478_485, max_side=65_535)
SIZE = 224


def scaled(rows: list[bytes], sizes: tuple[int, ...] = (SIZE,), limits: Limits = LIMITS) -> Batch:
    decoder = Decoder(Settings(limits, threads=2, scaled_decoding=True), sizes)
    batch = Batch(rows, sizes)
    decoder.decode([batch])
    decoder.close()
    return batch


def exact(rows: list[bytes], size: int = SIZE) -> NDArray[np.uint8]:
    """The plain way of PIL."""
    return np.stack([np.asarray(reference.pixels(Image.open(io.BytesIO(row)), size)) for row in rows])


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=90, exif=exif)


def white_noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8))


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[bytes]]:
    """JPEGs of sizes that eight divides and of sizes that it does not."""
    drawn = [scenes.render(name, 77, (1600, 1200)).image for name in scenes.CLASSES]
    cropped = [image.crop((0, 0, 1599, 1197)) for image in drawn]
    return {"scenes": [jpeg(image) for image in drawn + cropped], "white noise": [jpeg(white_noise())]}


def stated(kind: str) -> tuple[float, int, float]:
    """The tolerance that the documentation states: mean difference, largest difference, cosine."""
    text = (ROOT / "docs" / "preprocess.md").read_text()
    row = re.search(rf"^\| {kind}[^|]*\| ([\d.]+) \| (\d+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert row
    return float(row[1]), int(row[2]), float(row[3])


@pytest.mark.parametrize("kind", ["scenes", "white noise"])
def test_pixels_and_embeddings_stay_within_the_stated_tolerance(
    pictures: dict[str, list[bytes]], repository: Path, kind: str
) -> None:
    mean, largest, cosine = stated(kind)
    before, after = exact(pictures[kind]), scaled(pictures[kind]).pixels[SIZE]
    difference = np.abs(before.astype(int) - after)
    assert 0 < difference.mean(axis=(1, 2, 3)).max() <= mean  # above 0: it is another way
    assert difference.max() <= largest
    for encoder in ("metaclip", "evaclip"):
        session = onnxruntime.InferenceSession(repository / encoder / "1" / "model.onnx")
        a, b = (session.run(["embedding"], {"pixels": pixels})[0] for pixels in (before, after))
        assert (a * b).sum(axis=1).min() >= cosine


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    data = jpeg(noise(40, (1601, 1203)), orientation)
    difference = np.abs(exact([data]).astype(int) - scaled([data]).pixels[SIZE])
    assert difference.max() <= 3  # a smooth picture; a wrong turn would differ by more than a hundred


def test_every_encoder_keeps_twice_its_size() -> None:
    data = jpeg(noise(41, (1600, 1200)))
    batch = scaled([data], sizes=(SIZE, 448))  # 448 * 4 > 1600: not even half of it would be enough
    for size in (SIZE, 448):
        assert (batch.pixels[size] == exact([data], size)).all()


@pytest.mark.parametrize(
    "data",
    [jpeg(noise(42, (895, 2000))), encoded(noise(43, (1600, 1200))), encoded(noise(44, (1600, 1200)), "WEBP")],
    ids=["a jpeg below four times the size", "png", "webp"],
)
def test_other_images_stay_exact(data: bytes) -> None:
    assert (scaled([data]).pixels[SIZE] == exact([data])).all()


def test_the_pixel_limit_is_that_of_the_whole_image() -> None:
    batch = scaled([jpeg(noise(45, (1600, 1200)))], limits=Limits(16 << 20, 1600 * 1200 - 1, 65_535))
    (rejection,) = batch.rejections
    assert rejection
    assert rejection.kind is ErrorKind.TOO_MANY_PIXELS


def test_a_truncated_jpeg_is_rejected() -> None:
    data = jpeg(white_noise())
    (rejection,) = scaled([data[: len(data) // 2]]).rejections
    assert rejection
    assert rejection.kind is ErrorKind.TRUNCATED
