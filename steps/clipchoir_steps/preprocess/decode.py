"""Encoded image -> upright RGB picture -> pixels of the size that an encoder takes. What PIL does is the definition."""

import io
from dataclasses import dataclass
from enum import Enum

import numpy as np

# Each of these modules registers its decoder; without them, the first WebP would load everything that PIL has.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from clipchoir_steps.preprocess.limits import find_bomb

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
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

Box = tuple[float, float, float, float]


class ErrorKind(str, Enum):
    """Why an image was not decoded."""

    EMPTY = "empty"
    TOO_MANY_BYTES = "too_many_bytes"
    UNKNOWN_FORMAT = "unknown_format"
    TOO_LARGE_DIMENSION = "too_large_dimension"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_PARTS = "too_many_parts"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    OUT_OF_MEMORY = "out_of_memory"


class ImageError(ValueError):
    """An image cannot be decoded; the message says why."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """What is refused before it is decoded."""

    max_bytes: int  # of one encoded image
    max_pixels: int  # width times height
    max_side: int  # the longer of width and height


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, RGB. What is left to do to it is cheaper on the resized one, where it need not be exact."""

    image: Image.Image
    box: Box | None = None  # the part of it that is the picture; None: all
    turn: Image.Transpose | None = None

    def resized(self, size: int) -> Image.Image:
        """Resize to size x size with PIL's bicubic filter, whatever the aspect ratio."""
        image = self.image.resize((size, size), Image.Resampling.BICUBIC, box=self.box)
        return image if self.turn is None else image.transpose(self.turn)


def decode(data: bytes, limits: Limits, draft_side: int | None = None) -> DecodedImage:
    """Decode the first frame of an encoded image, upright, as 8-bit RGB.

    Args:
        data: the bytes of a file.
        limits: what to refuse.
        draft_side: None decodes exactly. With a number, a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size: the
            smallest one with both sides at least this long. Other images are decoded exactly.

    Raises:
        ImageError: the bytes are empty, beyond a limit, truncated, damaged, or not an image of a known format.
    """
    image = _open(data, limits)
    try:
        box = None if draft_side is None else _draft(image, draft_side)
        image.load()
        turn = _turn(image)
        picture = _eight_bit(image)
        if turn is not None and box is None:
            picture, turn = picture.transpose(turn), None
        # `convert` copies even what is RGB already
        return DecodedImage(picture if picture.mode == "RGB" else picture.convert("RGB"), box, turn)
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise _undecodable(error, limits) from error


def _open(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """Read the header, and refuse what is beyond the limits."""
    if not data:
        raise ImageError(ErrorKind.EMPTY, "the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise ImageError(
            ErrorKind.TOO_MANY_BYTES, f"{len(data):,} bytes are more than the limit of {limits.max_bytes:,} bytes"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(ErrorKind.UNKNOWN_FORMAT, f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise _undecodable(error, limits) from error
    width, height = image.size
    if max(width, height) > limits.max_side:
        raise ImageError(
            ErrorKind.TOO_LARGE_DIMENSION,
            f"{width}x{height} pixels: a side is longer than the limit of {limits.max_side:,} pixels",
        )
    if width * height > limits.max_pixels:
        raise ImageError(
            ErrorKind.TOO_MANY_PIXELS,
            f"{width}x{height} pixels are more than the limit of {limits.max_pixels:,} pixels",
        )
    if bomb := find_bomb(data, image):
        raise ImageError(ErrorKind.TOO_MANY_PARTS, bomb)
    return image


def _draft(image: ImageFile.ImageFile, side: int) -> Box | None:
    """Ask the decoder for a smaller picture; the part of it that is one, or None where it stays as it was."""
    size = image.size
    drafted = image.draft(None, (side, side))
    return None if drafted is None or image.size == size else drafted[1]


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _SIXTEEN_BIT_GREY:
        return image
    values = np.asarray(image)
    if image.mode == "I":
        values = values.clip(0, 65535)
    return Image.fromarray((values >> 8).astype(np.uint8))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings the image upright."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata does not make a good picture undecodable
        return None


def _undecodable(error: Exception, limits: Limits) -> ImageError:
    message = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return ImageError(ErrorKind.OUT_OF_MEMORY, "cannot be decoded: out of memory")
    if isinstance(error, Image.DecompressionBombError):  # PIL's own check, of what some decoders allocate early
        return ImageError(ErrorKind.TOO_MANY_PIXELS, f"more than the limit of {limits.max_pixels:,} pixels: {message}")
    kind = ErrorKind.TRUNCATED if "truncated" in message.lower() else ErrorKind.DAMAGED
    return ImageError(kind, f"cannot be decoded: {message}")
