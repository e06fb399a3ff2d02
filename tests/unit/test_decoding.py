"""Decoding without Triton: pixels, limits, hostile files, threads."""

import io
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from clipchoir_steps.preprocess import batch as batch_module
from clipchoir_steps.preprocess.batch import Batch, Decoder
from clipchoir_steps.preprocess.decode import FORMATS, ErrorKind, ImageError, Limits, decode
from clipchoir_steps.preprocess.settings import Settings
from tests.conftest import encoded, noise
from tests.server.test_bad_input import DECODABLE, UNDECODABLE
from tests.support import hostile_images as hostile
from tests.support import reference

LIMITS = Limits(max_bytes=1 << 20, max_pixels=89_478_485, max_side=65_535)
SIZES = (224, 56)


def decoded(*requests: list[bytes], threads: int = 2, limits: Limits = LIMITS) -> list[Batch]:
    """Decode some requests together."""
    decoder = Decoder(Settings(limits, threads, scaled_decoding=False), SIZES)
    batches = [Batch(rows, SIZES) for rows in requests]
    decoder.decode(batches)
    decoder.close()
    return batches


@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_equal_pils_plain_way_for_every_size(threads: int) -> None:
    (batch,) = decoded(list(DECODABLE.values()), threads=threads)
    assert batch.rejections == [None] * len(DECODABLE)
    for size in SIZES:
        for row, data in zip(batch.pixels[size], DECODABLE.values(), strict=True):
            assert (row == np.asarray(reference.pixels(Image.open(io.BytesIO(data)), size))).all()


KINDS = {
    "an empty row": ErrorKind.EMPTY,
    "text": ErrorKind.UNKNOWN_FORMAT,
    "a truncated jpeg": ErrorKind.TRUNCATED,
    "a truncated png": ErrorKind.TRUNCATED,
    "only a jpeg's first bytes": ErrorKind.UNKNOWN_FORMAT,
    "a bomb over the pixel limit": ErrorKind.TOO_MANY_PIXELS,
    "a bomb over pil's hard limit": ErrorKind.TOO_MANY_PIXELS,
    "a bomb in one dimension": ErrorKind.TOO_MANY_PIXELS,
    "a known but unlisted format": ErrorKind.UNKNOWN_FORMAT,
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_undecodable_rows_are_black_and_of_the_right_kind_and_change_no_other() -> None:
    assert KINDS.keys() == UNDECODABLE.keys()
    good = encoded(noise(1))
    bad = [data for data, _ in UNDECODABLE.values()]
    mixed, alone = decoded([good, *bad], [good])
    assert [each and each.kind for each in mixed.rejections] == [None, *KINDS.values()]
    for size in SIZES:
        assert (mixed.pixels[size][0] == alone.pixels[size][0]).all()
        assert not mixed.pixels[size][1:].any()


@pytest.mark.parametrize(
    ("limits", "data", "kind", "message"),
    [
        (
            Limits(max_bytes=999, max_pixels=10**9, max_side=10**9),
            b"x" * 1_000,
            ErrorKind.TOO_MANY_BYTES,
            "1,000 bytes are more than the limit of 999 bytes",
        ),
        (
            Limits(max_bytes=9999, max_pixels=99_999, max_side=10**9),
            hostile.png_header_of(1_000, 100),
            ErrorKind.TOO_MANY_PIXELS,
            "1000x100 pixels are more than the limit of 99,999 pixels",
        ),
        (
            Limits(max_bytes=9999, max_pixels=10**9, max_side=79_999),
            hostile.png_header_of(1, 80_000),
            ErrorKind.TOO_LARGE_DIMENSION,
            "1x80000 pixels: a side is longer than the limit of 79,999 pixels",
        ),
    ],
)
def test_a_limit_is_named_with_the_images_figure(limits: Limits, data: bytes, kind: ErrorKind, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    assert (caught.value.kind, str(caught.value)) == (kind, message)


def test_what_is_exactly_at_the_limits_is_decoded() -> None:
    data = encoded(noise(2, (40, 30)))
    assert decode(data, Limits(len(data), 40 * 30, 40)).image.size == (40, 30)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_pixel_limit_holds_for_every_format(image_format: str) -> None:
    data = encoded(noise(12, (320, 200)), image_format)
    assert decode(data, Limits(1 << 20, 64_000, 320)).image.size == (320, 200)
    with pytest.raises(ImageError, match="320x200 pixels are more than the limit of 63,999 pixels"):
        decode(data, Limits(1 << 20, 63_999, 320))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 60_000])
@pytest.mark.parametrize("header", hostile.HEADERS, ids=lambda header: header.__name__)
def test_a_bomb_is_refused_by_its_header(header: Callable[[int, int], bytes], side: int) -> None:
    with pytest.raises(ImageError, match="limit of 89,478,485 pixels") as caught:
        decode(header(side, side), LIMITS)
    assert caught.value.kind is ErrorKind.TOO_MANY_PIXELS


HOSTILE = {
    "a jpeg of many scans": (hostile.jpeg_with_scans(400), ErrorKind.TOO_MANY_PARTS),
    "a tiff whose tiles lie upon each other": (hostile.tiff_of_tiles(512, 256, 600), ErrorKind.TOO_MANY_PARTS),
    "a png with many compressed texts": (hostile.png_with_texts(80), ErrorKind.DAMAGED),
    "a png with a compressed profile": (hostile.png_with_colour_profile(50 << 20), ErrorKind.DAMAGED),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_fail_alone_and_leave_nothing_behind() -> None:
    limits = Limits(max_bytes=4 << 20, max_pixels=89_478_485, max_side=65_535)
    good = encoded(noise(3))
    for _ in range(2):  # PIL's bound on texts is one per image, not one per process
        (batch,) = decoded([good, *(data for data, _ in HOSTILE.values()), good], limits=limits)
        assert [each and each.kind for each in batch.rejections] == [
            None,
            *(kind for _, kind in HOSTILE.values()),
            None,
        ]
        assert (batch.pixels[224][-1] == batch.pixels[224][0]).all()


@pytest.mark.parametrize(
    "data",
    [
        hostile.jpeg_with_scans(150),
        hostile.jpeg_with_scans(0, trailer=hostile.START_OF_SCAN * 1_000),  # such as the film of a motion photo
        hostile.tiff_of_tiles(512, 256, 1),
        encoded(noise(4), "TIFF", tiffinfo={278: 1}),  # one row per strip
        hostile.png_with_texts(3),
        hostile.damaged_after_the_first_frame("GIF"),
        hostile.damaged_after_the_first_frame("TIFF"),
    ],
    ids=["scans", "trailer", "tiles", "strips", "texts", "gif", "tiff"],
)
def test_what_only_looks_hostile_is_decoded_as_pil_sees_it(data: bytes) -> None:
    (batch,) = decoded([data])
    assert batch.rejections == [None]
    assert (batch.pixels[224][0] == np.asarray(reference.pixels(Image.open(io.BytesIO(data))))).all()


def test_rejected_images_are_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    plain_open = Image.open

    def remember(*args: object, **options: object) -> Image.Image:
        image = plain_open(*args, **options)  # type: ignore[arg-type]
        opened.append(weakref.ref(image))
        return image

    monkeypatch.setattr(Image, "open", remember)
    truncated = encoded(noise(5), "JPEG")[:3_000]
    (batch,) = decoded([truncated] * 4)
    assert all(batch.rejections)
    assert [reference() for reference in opened] == [None] * 4


def test_rows_of_different_requests_are_decoded_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=20)

    def meet(data: bytes, *_: object) -> object:
        together.wait()
        return decode(data, LIMITS)

    monkeypatch.setattr(batch_module, "decode", meet)
    for batch in decoded([encoded(noise(6))], [encoded(noise(7))]):
        assert batch.failure is None


def test_a_single_row_changes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def note(data: bytes, *_: object) -> object:
        threads.append(threading.current_thread())
        return decode(data, LIMITS)

    monkeypatch.setattr(batch_module, "decode", note)
    decoded([encoded(noise(8))], threads=4)
    assert threads == [threading.current_thread()]


def test_an_image_is_decoded_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def note(data: bytes, *_: object) -> object:
        calls.append(data)
        return decode(data, LIMITS)

    monkeypatch.setattr(batch_module, "decode", note)
    (batch,) = decoded([encoded(noise(9)), encoded(noise(10))])
    assert len(calls) == 2
    assert [batch.pixels[size].shape for size in SIZES] == [(2, 224, 224, 3), (2, 56, 56, 3)]


def test_a_bug_fails_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(data: bytes, *_: object) -> object:
        if data == b"bug":
            raise RuntimeError("a bug")
        return decode(data, LIMITS)

    monkeypatch.setattr(batch_module, "decode", stumble)
    good, bad = decoded([encoded(noise(11))] * 3, [encoded(noise(11)), b"bug"])
    assert str(bad.failure) == "a bug"
    assert good.failure is None
    assert good.rejections == [None] * 3


PARAMETERS = {
    "max_image_bytes": "1000",
    "max_image_pixels": "2000",
    "max_image_side": "300",
    "decode_threads": "5",
    "jpeg_scaled_decoding": "true",
    "pixels_digest": "224=abc,336=def",
    "pixels_made_by": "Pillow 1.2",
}


def test_settings_are_read_from_the_configs_parameters() -> None:
    assert Settings.parse(PARAMETERS) == Settings(
        Limits(1000, 2000, 300), 5, scaled_decoding=True, pixels={224: "abc", 336: "def"}, pixels_made_by="Pillow 1.2"
    )
    assert Settings.parse({**PARAMETERS, "decode_threads": "0"}).threads >= 1


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_image_bytes", "64 MiB", "a whole number, at least 1"),
        ("max_image_pixels", "0", "a whole number, at least 1"),
        ("max_image_side", "-1", "a whole number, at least 1"),
        ("decode_threads", "", "a whole number, at least 0"),
        ("jpeg_scaled_decoding", "True", '"true" or "false"'),
        ("pixels_digest", "unbuilt", "digests by size"),
        ("pixels_digest", "224=", "digests by size"),
    ],
)
def test_a_bad_parameter_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf'parameter "{name}" must be {allowed}.*; got "{value}"'):
        Settings.parse({**PARAMETERS, name: value})
