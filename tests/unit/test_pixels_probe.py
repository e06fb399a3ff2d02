"""The digest of what decoding and resizing make of fixed images."""

import pytest
from PIL import Image

from clipchoir_steps.preprocess.decode import DecodedImage, Limits, decode
from clipchoir_steps.preprocess.probe import pixels_digest


def test_it_is_the_same_every_time_and_another_for_another_size_or_way_of_decoding() -> None:
    digests = [pixels_digest(224, False), pixels_digest(64, False), pixels_digest(224, True)]
    assert digests[0] == pixels_digest(224, False)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("size", [32, 224, 336])
def test_a_resize_in_the_other_order_shows(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As Pillow 13.0 does it with images that are higher than wide: first the height, rounded, then the width."""
    before = pixels_digest(size, False)

    def other_order(image: DecodedImage, size: int) -> Image.Image:
        width, height = image.image.size
        if height <= width:
            return image.image.resize((size, size), Image.Resampling.BICUBIC)
        higher = image.image.resize((width, size), Image.Resampling.BICUBIC)
        return higher.resize((size, size), Image.Resampling.BICUBIC)

    monkeypatch.setattr(DecodedImage, "resized", other_order)
    assert pixels_digest(size, False) != before


def test_another_decoder_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pixels_digest(224, False)

    def darker(data: bytes, limits: Limits) -> DecodedImage:
        return DecodedImage(decode(data, limits).image.point(lambda value: max(0, value - 1)))

    monkeypatch.setattr("clipchoir_steps.preprocess.probe.decode", darker)
    assert pixels_digest(224, False) != before
