"""Damaged inputs, the same for the same seed and number."""

import json
import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from tests.conftest import encoded, noise
from tests.support.hostile_images import gif_header_of, png_header_of, tiff_header_of

Value = str | bool | int | float | bytes | None  # bytes: a string on the wire that need not be UTF-8; None: left empty
_SIZE_FIELDS = {"JPEG": (0, 700), "PNG": (16, 60), "WEBP": (4, 40), "BMP": (2, 54), "TIFF": (0, 200), "GIF": (6, 30)}
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Case:
    """One damaged input: an image, or parameters of a request with a good image."""

    number: int
    image: bytes | None = None
    parameters: dict[str, Value] | None = None


def cases(seed: int, numbers: Sequence[int]) -> list[Case]:
    """Cases by number: of ten, eight are images, one is a label set and one weights."""
    pictures = _pictures()
    return [_case(random.Random(f"{seed} {number}"), number, pictures) for number in numbers]  # noqa: S311


def _case(random_: random.Random, number: int, pictures: Sequence[tuple[str, bytes]]) -> Case:
    kind = number % 10
    if kind < 8:
        return Case(number, image=_image(random_, *random_.choice(pictures), other=random_.choice(pictures)[1]))
    name, value = ("label_set_spec", _spec(random_)) if kind == 8 else ("weights", _weights(random_))
    return Case(number, parameters={name: value})


def _pictures() -> list[tuple[str, bytes]]:
    """Small ones, so that damage hits headers as often as pixels."""
    small = [noise(seed, (48, 36)) for seed in range(8)]
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = small[1].convert("L")
    return [
        ("JPEG", encoded(small[0], "JPEG")),
        ("JPEG", encoded(small[1], "JPEG", progressive=True, exif=exif)),
        ("JPEG", encoded(small[2].convert("CMYK"), "JPEG")),
        ("PNG", encoded(small[3])),
        ("PNG", encoded(small[4].convert("P"), transparency=3)),
        ("WEBP", encoded(small[5], "WEBP")),
        ("WEBP", encoded(small[6].convert("RGBA"), "WEBP", lossless=True)),
        ("BMP", encoded(small[7], "BMP")),
        ("BMP", encoded(grey.convert("1"), "BMP")),
        ("TIFF", encoded(small[0], "TIFF")),
        ("TIFF", encoded(grey, "TIFF", compression="tiff_lzw")),
        ("TIFF", encoded(small[2], "TIFF", compression="jpeg")),
        ("GIF", encoded(small[3].convert("P"), "GIF", save_all=True, append_images=[small[4].convert("P")])),
    ]


def _image(random_: random.Random, form: str, data: bytes, other: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        _damage(random_, form, damaged, other)
    return bytes(damaged)


def _damage(random_: random.Random, form: str, data: bytearray, other: bytes) -> None:
    size = len(data)
    place = random_.randrange(size + 1)
    kind = random_.randrange(9)
    if kind == 0:  # flipped bits
        for _ in range(random_.choice((1, 2, 8, 64))):
            if size:
                data[random_.randrange(size)] ^= 1 << random_.randrange(8)
    elif kind == 1:  # truncated
        del data[place:]
    elif kind == 2:  # the end of another file
        data[place:] = other[random_.randrange(len(other)) :]
    elif kind == 3:  # a part of another file put in
        start = random_.randrange(len(other))
        data[place:place] = other[start : start + random_.randrange(1, 200)]
    elif kind in (4, 5):  # a size, offset or tag in the header
        start, end = _SIZE_FIELDS[form]
        where = random_.randrange(start, end)
        width = random_.choice("BHI")
        number = random_.choice(_NUMBERS) & (1 << 8 * struct.calcsize(width)) - 1
        data[where : where + struct.calcsize(width)] = struct.pack(random_.choice("<>") + width, number)
    elif kind == 6:  # a part removed, or there twice
        part = data[place : place + random_.randrange(1, 64)]
        data[place : place + len(part)] = random_.choice((b"", part * 2))
    elif kind == 7:  # garbage within
        garbage = random_.randbytes(random_.randrange(1, 64))
        data[place : place + len(garbage)] = garbage
    else:  # nothing but garbage, or a header that claims much
        sides = random_.choices((0, 1, 7, 2**16 - 1, 9_400), k=2)
        data[:] = random_.choice(
            (
                b"",
                random_.randbytes(random_.randrange(200)),
                bytes(data[:12]) + random_.randbytes(100),
                png_header_of(*sides),
                gif_header_of(*sides),
                tiff_header_of(*sides),
            )
        )


def _spec(random_: random.Random) -> Value:
    text = json.dumps(
        {
            "classes": random_.sample(["cat", "dog", "fox", "büffel", "猫"], 2),
            "templates": ["a {}", "{}"],
            "extra": {"cat": ["kitten"]},
        },
        ensure_ascii=random_.random() < 0.5,
    )
    kind = random_.randrange(8)
    if kind == 0:
        return random_.choice((None, True, -1, 1.5, math.nan, "", " ", "null", "[]", "{}", "0", '"cat"', "{", "\0"))
    if kind in (1, 2):  # characters
        changed = list(text)
        for _ in range(random_.choice((1, 1, 2, 5))):
            place = random_.randrange(len(changed))
            some = random_.choice(("", "\0", "{", "}", "[", "]", '"', "\\", ",", ":", "\ufeff", "\U0010ffff", "é", "9"))
            changed[place : place + random_.randrange(2)] = some
        return "".join(changed)
    if kind == 3:  # text that cannot be
        piece = random_.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"))
        place = random_.randrange(len(text))
        return text[:place].encode() + piece + text[place:].encode()
    if kind == 4:  # deep, long, huge
        return random_.choice(
            (
                "[" * random_.randrange(1, 200_000),
                '{"classes":' * random_.randrange(1, 5000) + "1" + "}" * 5000,
                '{"classes": [' + "9" * random_.randrange(1, 10_000) + "]}",
                '{"classes": [1e999, -0.0, NaN, Infinity]}',
                json.dumps(
                    {"classes": [f"c{i}" for i in range(random_.randrange(900, 1200))], "templates": ["{}"] * 3}
                ),
                json.dumps({"classes": ["a" * random_.randrange(1_000_000, 1_100_000)]}),
                json.dumps({"classes": ["b"], "templates": ["{}" * random_.randrange(1, 3000)]}),
            )
        )
    return json.dumps(_content(random_))


def _content(random_: random.Random) -> dict[str, object]:
    """A label set, most often with something wrong."""
    wrong: tuple[object, ...] = (
        None,
        True,
        0,
        -1.5,
        10**30,
        "",
        "cat",
        [],
        [[]],
        {},
        {"cat": 1},
        [None],
        [1],
        ["\ud800"],
        ["\0"],
        [" "],
    )
    content: dict[str, object] = {
        "classes": random_.choice((["cat", "dog"], ["cat"], ["cat", "cat"], ["", "dog"], ["cat", "\u200b"])),
        "templates": random_.choice((["{}"], ["a {}"], ["no place"], [], ["{"], ["{} {}"], ["{0}"], ["%s {}"])),
        "extra": random_.choice(({}, {"cat": ["kitten"]}, {"cow": ["calf"]}, {"cat": []}, {"cat": [""]})),
    }
    for _ in range(random_.choice((0, 1, 1, 2))):
        content[random_.choice(("classes", "templates", "extra", "Classes", ""))] = random_.choice(wrong)
    for key in random_.choice(((), (), ("templates",), ("extra",), ("classes",))):
        content.pop(key, None)
    return content


def _weights(random_: random.Random) -> Value:
    numbers = (
        *("0.5", "1", "0", "-0", "-1", "+1", "1e999", "-1e999", "1e-999", "1e308", "nan", "-nan", "inf", "infinity"),
        *(
            "٣",
            "\uff11",
            "½",
            "²",
            "1_000",
            "0x10",
            "1e",
            "e1",
            ".",
            ".5",
            "5.",
            "",
            " ",
            "1 2",
            "\u00a01",
            "1\0",
            "--1",
        ),
        *("9" * 400, "0." + "0" * 400 + "1", "True", "None", "1d0", "1,5", "\u22121"),
    )
    if random_.random() < 0.25:
        return random_.choice((True, False, 0, 1, -(2**63), 2**63 - 1, 0.5, math.nan, math.inf, 1e308, None, b"\xff,1"))
    parts = [random_.choice(numbers) for _ in range(random_.choice((2, 2, 2, 2, 1, 3, 1000)))]
    separators = (",", ",", ",", ",", ";", " ", ", ", "\uff0c", ",,", "\n", "\0", "|")
    return "".join([parts[0], *(random_.choice(separators) + part for part in parts[1:])])
