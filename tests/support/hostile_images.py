"""Files that are small, or within every limit of size, and would cost a careless decoder minutes or gigabytes."""

import struct
import zlib

from PIL import Image

from tests.conftest import encoded, noise

START_OF_SCAN = b"\xff\xda"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that claims to be huge and holds next to nothing."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def gif_header_of(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0" + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def bmp_header_of(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF with these tags (number, type, count, value), all of it data at byte 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    start = 8 + len(data)
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def tiff_header_of(width: int, height: int) -> bytes:
    return tiff(
        [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    )


HEADERS = (png_header_of, gif_header_of, bmp_header_of, tiff_header_of)


def tiff_of_tiles(side: int, tile: int, repeats: int) -> bytes:
    """A grey picture of half-size tiles; every tile holds the same bytes, and all of them come `repeats` times."""
    pixels = bytes(range(256)) * (tile * tile // 256)
    count = (side // tile) ** 2 * repeats
    where = struct.pack(f"<{count}I", *[8] * count)
    return tiff(
        [
            *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
            *((322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, 8 + len(pixels))),
        ],
        pixels + where,
    )


def jpeg_with_scans(repeats: int, trailer: bytes = b"") -> bytes:
    """A progressive JPEG whose second scan comes again and again."""
    data = encoded(noise(30), "JPEG", progressive=True)
    second = data.index(START_OF_SCAN, data.index(START_OF_SCAN) + 2)
    third = data.index(START_OF_SCAN, second + 2)
    return data[:third] + data[second:third] * repeats + data[third:] + trailer


def png_with_texts(count: int) -> bytes:
    """A PNG with compressed texts of a million characters each, a kilobyte in the file."""
    data = encoded(noise(31))
    text = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 1_000_000, 9))
    return data[:33] + text * count + data[33:]


def png_with_colour_profile(size: int) -> bytes:
    """A PNG whose colour profile is far larger than its file."""
    data = encoded(noise(32))
    return data[:33] + png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"\0" * size, 9)) + data[33:]


def damaged_after_the_first_frame(image_format: str) -> bytes:
    """Three frames; nothing but zeros from the middle of the second on."""
    frames: list[Image.Image] = [noise(seed) for seed in (33, 34, 35)]
    if image_format == "GIF":
        frames = [frame.convert("P") for frame in frames]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    first = len(encoded(frames[0], image_format))
    kept = first + (len(data) - first) // 4
    return data[:kept] + b"\0" * (len(data) - kept)
