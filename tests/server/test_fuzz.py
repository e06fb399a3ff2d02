"""Damaged images, label sets and weights: an answer or a typed error for each. `make fuzz` tries 10,000 and more."""

import io

import numpy as np
import pytest
from PIL import Image

from clipchoir_server.triton import Triton
from tests.support.mutations import cases
from tools.fuzz import CLEAN, Wire, fuzz, is_no_utf8, request_bytes, wrong_with

SEED = 20_000
COUNT = 3_000


def test_every_damaged_input_gets_an_answer_or_a_typed_error(server: Triton) -> None:
    found = fuzz(server.address.grpc, SEED, COUNT)
    assert not found.failures, f"{len(found.failures)} failures with seed {SEED}\n" + "\n".join(found.failures[:20])
    assert found.outcomes.total() == COUNT
    for kind in ("image: answer", "image: row error"):
        assert found.outcomes[kind] >= COUNT // 20, found.outcomes
    for kind in ("label_set_spec: answer", "weights: answer"):  # few are still right after the damage
        assert found.outcomes[kind] > 0, found.outcomes
    for kind in ("label_set_spec: INVALID_ARGUMENT", "weights: INVALID_ARGUMENT"):
        assert found.outcomes[kind] >= COUNT // 20, found.outcomes
    assert server.process.poll() is None


def test_a_number_and_a_seed_stand_for_one_input() -> None:
    some = cases(5, range(50))
    assert cases(5, range(50)) == some
    assert cases(5, [17])[0] == some[17]
    assert cases(6, [17]) != cases(5, [17])


def test_images_are_damaged_in_each_format() -> None:
    opened = set()
    for case in cases(0, range(400)):
        if case.image is not None:
            try:
                opened.add(Image.open(io.BytesIO(case.image)).format)
            except Exception as error:
                opened.add(type(error).__name__)
    assert {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "UnidentifiedImageError"} <= opened


def test_text_that_is_no_utf8_reaches_the_wire_as_it_is() -> None:
    assert b"\xff,1" in request_bytes([CLEAN], {"weights": b"\xff,1"})
    assert any(is_no_utf8(case) for case in cases(0, range(400)))


@pytest.mark.parametrize(
    ("output", "value", "what"),
    [
        ("scores", np.nan, "not finite"),
        ("scores", 2.0, "sum to"),
        ("encoder_scores", 0.2, "sum to"),
        ("label", b"another", "no class"),
        ("error", b"why", "an error and numbers"),
    ],
)
def test_an_answer_that_cannot_be_is_seen(server: Triton, output: str, value: object, what: str) -> None:
    with Wire(server.address.grpc) as wire:
        answer = {name: array.copy() for name, array in wire.ask([CLEAN]).items()}
    assert wrong_with(answer, 0) is None
    answer[output].flat[0] = value
    assert what in str(wrong_with(answer, 0))
