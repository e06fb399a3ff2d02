"""Images in all the forms that a client takes -> encoded bytes."""

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Union, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

AnImage = Union[str, os.PathLike[str], bytes, BinaryIO, "PilImage", NDArray[np.uint8]]
Image = AnImage | tuple[str, AnImage]

_ORIENTATION = 0x0112
_MOST_PLAIN = 32 << 20  # bytes; larger images are compressed, without loss, since a server has its limit
_TIFF_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")


@dataclass(frozen=True)
class Row:
    """One image of a request; with an `error` it is not sent."""

    source: str | None
    data: bytes = b""
    error: str = ""


def read(image: Image) -> Row:
    """The bytes of an image, and where they are from. What cannot be read gives a row with an `error`.

    Raises:
        TypeError, ValueError: this is no image at all.
    """
    if isinstance(image, tuple):
        row = read(image[1])
        return Row(image[0], row.data, row.error)
    if isinstance(image, bytes | bytearray | memoryview):
        return Row(None, bytes(image))
    if isinstance(image, str | os.PathLike):
        return _read_file(os.fspath(image))
    if isinstance(image, np.ndarray):
        return Row(None, bitmap(image))
    if hasattr(image, "getexif"):  # of PIL, which need not be installed
        return _read_pil(cast("PilImage", image))
    if hasattr(image, "read"):
        return _read_open_file(image)
    raise TypeError(
        f"{type(image).__name__} is not an image: give a path, bytes, a binary file, a PIL image or an array"
    )


def _read_file(source: str) -> Row:
    path = source
    if "://" in source or source.startswith("file:"):
        url = urlsplit(source)
        if url.scheme != "file" or url.netloc not in ("", "localhost"):
            return Row(source, error="cannot be read: only file: URLs of this machine are")
        path = unquote(url.path)
    try:
        return Row(source, Path(path).read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        return Row(source, error=f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _read_open_file(file: Any) -> Row:
    name = getattr(file, "name", None)
    source = name if isinstance(name, str) else None
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        return Row(source, error=f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if not isinstance(data, bytes):
        raise TypeError(f"the file {source or file!r} is open for text: open it with 'rb'")
    return Row(source, data)


def _read_pil(image: "PilImage") -> Row:
    """As TIFF, without the tags of its file but one: the server applies the EXIF orientation."""
    from PIL import Image

    source = getattr(image, "filename", None) or None
    out = io.BytesIO()
    try:
        orientation = Image.Exif()
        orientation[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
        plain = image.copy() if image.mode in _TIFF_MODES else image.convert("RGB")
        is_large = plain.width * plain.height * len(plain.getbands()) > _MOST_PLAIN
        plain.save(out, "TIFF", exif=orientation, compression="tiff_adobe_deflate" if is_large else "raw")
    except Exception as error:  # PIL raises nearly anything on files that it opened before and reads only now
        return Row(source, error=f"cannot be read: {error or type(error).__name__}")
    return Row(source, out.getvalue())


def bitmap(pixels: NDArray[np.uint8]) -> bytes:
    """A Windows bitmap: no compression, 24 bits, lines from bottom to top in BGR, each filled up to 4 bytes.

    Args:
        pixels: uint8 (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, whose alpha is ignored.

    Raises:
        ValueError: it has another type or shape.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f"an array must be uint8 with values from 0 to 255, got {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None].repeat(3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise ValueError(f"an array must have the shape (H, W), (H, W, 3) or (H, W, 4), got {pixels.shape}")
    height, width, _ = pixels.shape
    lines = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    lines[:, : 3 * width] = pixels[::-1, :, 2::-1].reshape(height, 3 * width)
    head = struct.pack("<2sIHHI", b"BM", 54 + lines.size, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, lines.size, 0, 0, 0, 0) + lines.tobytes()
