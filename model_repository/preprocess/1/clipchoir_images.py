"""Encoded image -> RGB pixels of the size that an encoder takes. What PIL does is the definition."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 89_478_485  # PIL's own warning limit
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_SIXTEEN_BIT_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(ValueError):
    """An image cannot be decoded; the message says why."""


def decode(data: bytes) -> Image.Image:
    """Decode the first frame of an encoded image, upright, as 8-bit RGB.

    Raises:
        ImageError: the bytes are empty, truncated, not an image of a known format, or more than `MAX_PIXELS`.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from error
    except Exception as error:
        raise _undecodable(error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS:,} pixels")
    try:
        image.load()
        return _upright(_eight_bit(image), _orientation(image)).convert("RGB")
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise _undecodable(error) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _SIXTEEN_BIT_GREY:
        return image
    values = np.asarray(image)
    if image.mode == "I":
        values = values.clip(0, 65535)
    return Image.fromarray((values >> 8).astype(np.uint8))


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken metadata does not make a good picture undecodable
        return None


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _undecodable(error: Exception) -> ImageError:
    return ImageError(f"cannot be decoded: {error or type(error).__name__}")


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize to size x size with PIL's bicubic filter, whatever the aspect ratio."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Pixels:
    """One row of a batch: pixels per size, uint8 (S, S, 3), or the reason why there are none."""

    by_size: dict[int, NDArray[np.uint8]]
    error: str = ""


def preprocess(data: bytes, sizes: Sequence[int]) -> Pixels:
    """Decode one image once and squash it to each size; an undecodable one becomes black pixels and an error."""
    try:
        image = decode(data)
        return Pixels({size: np.asarray(squash(image, size)) for size in sizes})
    except (ImageError, MemoryError) as error:
        return Pixels({size: np.zeros((size, size, 3), np.uint8) for size in sizes}, str(error) or "out of memory")
