"""Files within every limit of size that would still keep a decoder busy for minutes or hours."""

import re

from PIL import ImageFile

MAX_SCANS = 200  # of a JPEG; encoders write up to a few dozen, and each takes a pass over the whole picture
MAX_COVER = (
    8  # how often the strips or tiles of a TIFF may cover the picture; files of separate bands do so 3 or 4 times
)
_TILE_COST = 256  # pixels that are decoded in the time that any one strip or tile takes
_ALWAYS = 1 << 26  # pixels that every file may decode: 262,144 of the smallest strips

_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not what occurs inside of compressed data
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = (0x01, 0xD8)


def find_bomb(data: bytes, image: ImageFile.ImageFile) -> str | None:
    """What is wrong with an image of which only the header has been read; None if nothing is.

    A JPEG can repeat a scan of 150 bytes as often as its file has room for. A TIFF can decode the same bytes again and
    again, as strips or tiles that lie upon each other.
    """
    if image.format in ("JPEG", "MPO"):
        # The first way of counting is fast, but takes thumbnails and whatever follows the image for scans.
        if data.count(_SCAN) > MAX_SCANS and (scans := _scans(data)) > MAX_SCANS:
            return f"{scans:,} scans are more than the limit of {MAX_SCANS} scans"
    elif len(image.tile) > 1:
        width, height = image.size
        cost = sum(_tile_cost(tile[1]) for tile in image.tile)
        if cost > max(_ALWAYS, MAX_COVER * width * height):
            return f"its {len(image.tile):,} strips or tiles cover it more than {MAX_COVER} times, the limit"
    return None


def _scans(jpeg: bytes) -> int:
    """Scans of a JPEG's first image."""
    scans = position = 0
    while marker := _MARKER.search(jpeg, position):
        position = marker.end()
        code = jpeg[position - 1]
        if code == _END_OF_IMAGE:
            break
        scans += code == _START_OF_SCAN
        if code not in _WITHOUT_LENGTH:
            position += int.from_bytes(jpeg[position : position + 2], "big")
    return scans


def _tile_cost(extents: tuple[int, int, int, int] | None) -> int:
    if extents is None:
        return _TILE_COST
    left, top, right, bottom = extents
    return max(_TILE_COST, (right - left) * (bottom - top))
