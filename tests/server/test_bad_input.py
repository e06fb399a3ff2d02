"""Images that are broken, hostile or merely unusual, in batches with good ones."""

import io
import struct

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image

from tests.conftest import ROOT, encoded, infer, noise
from tests.support import reference
from tests.support.hostile_images import png_header_of

SCENES = ROOT / "export" / "label_sets" / "scenes.toml"
OUTPUTS = ["label", "score", "scores", "encoder_scores", "metaclip_embedding", "evaclip_embedding", "error"]
JPEG = encoded(noise(10), "JPEG", quality=95)


def sixteen_bit_grey() -> bytes:
    ramp = np.linspace(0, 65535, 200 * 100).astype(np.uint16).reshape(100, 200)
    return encoded(Image.fromarray(ramp))


def animated_gif() -> bytes:
    frames = [noise(seed, (120, 90)).convert("P") for seed in (20, 21, 22)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated_by_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(23), "JPEG", quality=95, exif=exif)


def turned_with_broken_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 1.5  # XResolution
    data = encoded(noise(25), "JPEG", quality=95, exif=exif)
    position = (
        data.index(struct.pack(">HHI", 0x011A, 5, 1))
        if b"MM" in data[:40]
        else data.index(struct.pack("<HHI", 0x011A, 5, 1))
    )
    order = ">" if b"MM" in data[:40] else "<"
    broken = struct.pack(order + "HHI", 0x011A, 9, 1) + struct.pack(order + "i", -5)  # a negative whole number
    return data[:position] + broken + data[position + 12 :]


def palette_with_transparency() -> bytes:
    return encoded(noise(24).convert("P", palette=Image.Palette.ADAPTIVE), transparency=3)


UNDECODABLE = {
    "an empty row": (b"", "empty"),
    "text": (b"this is not an image", "not an image of a known format"),
    "a truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "a truncated png": (encoded(noise(11))[:4000], "cannot be decoded"),
    "only a jpeg's first bytes": (JPEG[:20], "not an image of a known format"),
    "a bomb over the pixel limit": (png_header_of(9_500, 9_500), "89,478,485"),
    "a bomb over pil's hard limit": (png_header_of(60_000, 60_000), "decompression bomb"),
    "a bomb in one dimension": (png_header_of(1, 2**31 - 1), "decompression bomb"),
    "a known but unlisted format": (encoded(noise(12), "PPM"), "not an image of a known format"),
}
DECODABLE = {
    "1x1": encoded(Image.new("RGB", (1, 1), (200, 30, 60))),
    "cmyk": encoded(noise(13).convert("CMYK"), "JPEG"),
    "palette with transparency": palette_with_transparency(),
    "rgba": encoded(noise(14).convert("RGBA")),
    "grey": encoded(noise(15).convert("L"), "JPEG"),
    "grey with alpha": encoded(noise(15).convert("LA")),
    "one bit": encoded(noise(16).convert("1")),
    "animated gif": animated_gif(),
    "webp": encoded(noise(17), "WEBP"),
    "bmp": encoded(noise(18), "BMP"),
    "tiff": encoded(noise(19), "TIFF"),
    **{f"exif {orientation}": rotated_by_exif(orientation) for orientation in range(1, 10)},
    "exif 6 beside a broken tag": turned_with_broken_exif(),
}


@pytest.mark.parametrize("case", UNDECODABLE)
def test_an_undecodable_row_gets_its_error_and_the_others_their_answers(
    triton: grpcclient.InferenceServerClient, case: str
) -> None:
    data, reason = UNDECODABLE[case]
    good = [encoded(noise(seed)) for seed in range(4)]
    alone = infer(triton, good, OUTPUTS)
    mixed = infer(triton, [good[0], good[1], data, good[2], good[3]], OUTPUTS)

    assert reason in mixed["error"][2, 0].decode()
    assert mixed["label"][2, 0] == b""
    for name in ("score", "scores", "encoder_scores", "metaclip_embedding", "evaclip_embedding"):
        assert np.isnan(mixed[name][2]).all()
        np.testing.assert_allclose(np.delete(mixed[name], 2, axis=0), alone[name], atol=1e-5)
    for name in ("label", "error"):
        assert (np.delete(mixed[name], 2, axis=0) == alone[name]).all()


def test_a_batch_of_only_undecodable_rows(triton: grpcclient.InferenceServerClient) -> None:
    answer = infer(triton, [data for data, _ in UNDECODABLE.values()], OUTPUTS)
    for error, (_, reason) in zip(answer["error"][:, 0], UNDECODABLE.values(), strict=True):
        assert reason in error.decode()
    assert np.isnan(answer["scores"]).all()


@pytest.mark.parametrize("case", DECODABLE)
def test_an_unusual_image_is_classified_as_pil_sees_it(triton: grpcclient.InferenceServerClient, case: str) -> None:
    data = DECODABLE[case]
    answer = infer(triton, [encoded(noise(0)), data], OUTPUTS)
    assert answer["error"][1, 0] == b""
    expected = reference.classify([reference.pixels(Image.open(io.BytesIO(data)))], SCENES)
    np.testing.assert_allclose(answer["scores"][1], expected.scores[0], atol=1e-4)


def test_sixteen_bit_grey_is_brought_to_eight_bits_by_its_high_byte(
    triton: grpcclient.InferenceServerClient,
) -> None:
    data = sixteen_bit_grey()
    high_byte = (np.asarray(Image.open(io.BytesIO(data))).astype(np.int64) // 256).astype(np.uint8)
    image = Image.fromarray(high_byte)
    answer = infer(triton, [data], ["scores", "error"])
    assert answer["error"][0, 0] == b""
    np.testing.assert_allclose(
        answer["scores"], reference.classify([reference.pixels(image)], SCENES).scores, atol=1e-4
    )


def test_exif_orientation_turns_the_image(triton: grpcclient.InferenceServerClient) -> None:
    upright, turned = (infer(triton, [rotated_by_exif(n)], ["metaclip_embedding"]) for n in (1, 6))
    assert np.abs(upright["metaclip_embedding"] - turned["metaclip_embedding"]).max() > 1e-3


def test_the_server_is_alive_after_all_of_this(triton: grpcclient.InferenceServerClient) -> None:
    rows = [data for data, _ in UNDECODABLE.values()] + list(DECODABLE.values())
    for _ in range(3):
        infer(triton, rows, ["label"])
    assert triton.is_server_ready()
    assert infer(triton, [encoded(noise(0))], ["error"])["error"][0, 0] == b""
