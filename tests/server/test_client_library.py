"""What the client library takes and gives, against a real server."""

import asyncio
import io
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import clipchoir
from clipchoir import AsyncClient, Client, Embedding, LabelSet
from clipchoir_server.triton import Triton
from tests.conftest import SAMPLES, encoded, noise
from tests.support.traffic import set_id

PETS = LabelSet(["cat", "dog"], ["a photo of a {}.", "{}"], {"cat": ["a kitten"]})


@pytest.fixture(scope="module")
def client(server: Triton) -> Iterator[Client]:
    with Client(server.address.grpc) as client:
        yield client


def test_every_form_of_an_image_gets_the_same_answer(client: Client, tmp_path: Path) -> None:
    pixels = np.asarray(noise(1))
    path = tmp_path / "a b%.png"
    path.write_bytes(encoded(noise(1)))
    with path.open("rb") as file:
        images: list[Any] = [
            path,
            str(path),
            path.as_uri(),
            path.read_bytes(),
            memoryview(path.read_bytes()),
            file,
            io.BytesIO(path.read_bytes()),
            Image.open(path),
            noise(1),
            pixels,
            np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)]),
            ("a name", pixels),
            ("another", path),
        ]
        results = client.classify(images, batch_size=5)
    expected = results[0]
    assert not expected.error
    for result in results:
        assert not result.error
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)
    sources = [result.source for result in results]
    assert sources[:3] == [str(path), str(path), path.as_uri()]
    assert sources[3:7] == [None, None, str(path), None]
    assert sources[7] == str(path)
    assert sources[8:] == [None, None, None, "a name", "another"]
    assert [result.index for result in results] == list(range(len(images)))


def test_grey_arrays_and_pil_modes(client: Client) -> None:
    grey = np.asarray(noise(2).convert("L"))
    pictures: list[Any] = [grey, Image.fromarray(grey), Image.fromarray(grey).convert("RGB")]
    for mode in ("P", "CMYK", "RGBA", "1", "I;16"):
        picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else noise(2).convert(mode)
        pictures += [picture, picture.convert("RGB") if mode != "I;16" else Image.fromarray(grey)]
    results = client.classify(pictures)
    assert [result.error for result in results] == [""] * len(pictures)
    np.testing.assert_allclose(results[0].scores, results[2].scores, atol=1e-6)
    for number in range(1, len(results) - 1, 2):
        np.testing.assert_allclose(results[number].scores, results[number + 1].scores, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "LA", "I;16"])
def test_a_pil_image_beyond_the_servers_limit_of_bytes_is_compressed(client: Client, mode: str) -> None:
    small = noise(6, (60, 40)).convert("L")
    large = small.resize((7200, 4800), Image.Resampling.NEAREST)  # 34 MB for each band
    large = Image.fromarray(np.asarray(large).astype(np.uint16) * 257) if mode == "I;16" else large.convert(mode)
    (compressed,) = client.classify([large])
    assert compressed.error == ""
    plain = large if mode != "I;16" else Image.fromarray((np.asarray(large) // 257).astype(np.uint8))
    (by_file,) = client.classify([encoded(plain.convert("RGB"))])
    np.testing.assert_allclose(compressed.scores, by_file.scores, atol=1e-5)


def test_a_pil_image_is_turned_as_its_file_would_be(client: Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    noise(3).save(path, quality=100, subsampling=0, exif=exif)
    by_path, by_image, lying = client.classify([path, Image.open(path), np.asarray(Image.open(path))])
    np.testing.assert_allclose(by_path.scores, by_image.scores, atol=1e-6)
    assert np.abs(by_path.scores - lying.scores).max() > 1e-5


def test_a_pil_image_is_sent_as_it_is_now(client: Client, tmp_path: Path) -> None:
    """Not with the tags of the file that it was opened from, which may be another's by now."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0100], exif[0x0101] = 6, 320, 200
    noise(4).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    noise(4).save(tmp_path / "scan.tif", compression="jpeg")
    for name in ("phone.jpg", "scan.tif"):
        opened = Image.open(tmp_path / name)
        small = opened.copy()
        small.thumbnail((100, 100))
        changed = [small, opened.resize((64, 64)), opened.crop((10, 10, 90, 70)), opened.rotate(90, expand=True)]
        for each in [*changed, Image.open(tmp_path / name)]:
            pixels = np.asarray(ImageOps.exif_transpose(each).convert("RGB"))
            by_image, by_pixels = client.classify([each, pixels])
            assert not by_image.error
            np.testing.assert_allclose(by_image.scores, by_pixels.scores, atol=1e-6)
    video = noise(5).convert("YCbCr")
    by_image, by_pixels = client.classify([video, np.asarray(video.convert("RGB"))])
    np.testing.assert_allclose(by_image.scores, by_pixels.scores, atol=1e-6)


def test_stored_embeddings_of_failed_images_have_an_error(client: Client) -> None:
    good = next(client.embed(SAMPLES[:1])).embedding
    stored = {name: np.stack([values, np.full_like(values, np.nan), values]) for name, values in good.items()}
    one, bad, other = client.score(stored)
    assert (one.error, bad.error, other.error) == ("", "it has no embedding", "")
    assert bad.label == ""
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(client.score(stored, batch_size=-1))


@pytest.mark.parametrize("ordered", [True, False])
def test_closing_under_a_stream_ends_it_with_a_typed_error(server: Triton, ordered: bool) -> None:
    client = Client(server.address.grpc, concurrency=2)
    stream = client.stream(SAMPLES * 20, batch_size=2, ordered=ordered)
    next(stream)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(clipchoir.ClientClosedError):
        for _ in stream:
            pass


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (7, TypeError, "int is not an image"),
        (None, TypeError, "NoneType is not an image"),
        (io.StringIO("x"), TypeError, "open for text"),
        (np.zeros((2, 2, 3), np.float32), ValueError, "must be uint8"),
        (np.zeros((2, 2, 2), np.uint8), ValueError, r"must have the shape"),
        (np.zeros((0, 2, 3), np.uint8), ValueError, r"must have the shape"),
    ],
)
def test_what_is_no_image_is_an_exception(client: Client, image: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        client.classify([image])


def test_what_cannot_be_read_is_a_result(client: Client, tmp_path: Path) -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    images: list[Any] = ["https://example.com/a.jpg", "file://elsewhere/a.jpg", tmp_path, "a\0b", closed]
    for result in client.classify(images):
        assert result.error.startswith("cannot be read: "), result
        assert np.isnan(result.score)
        assert result.label == ""
        with pytest.raises(clipchoir.BadImageError):
            result.raise_for_error()


def test_embeddings_beside_scores_and_alone(client: Client) -> None:
    paths = SAMPLES[:10]
    results = client.classify(paths, embeddings=True, batch_size=3)
    alone = list(client.embed([*paths, b"no image"], batch_size=4))
    assert [type(each) for each in alone] == [Embedding] * 11
    assert alone[10].error
    assert alone[10].embedding == {}
    for one, other in zip(results, alone[:10], strict=True):
        assert one.embedding.keys() == other.embedding.keys() == set(client.encoders)
        for encoder in client.encoders:
            np.testing.assert_allclose(one.embedding[encoder], other.embedding[encoder], atol=1e-5)
            assert np.linalg.norm(one.embedding[encoder]) == pytest.approx(1, abs=1e-5)
            assert one.embedding[encoder].shape == (client.service.dims[encoder],)


def test_scoring_stored_embeddings_equals_classifying(client: Client) -> None:
    options: Any = {"label_set": PETS, "weights": [3, 1], "logit_scale": 50, "aggregate": "mean_embedding"}
    results = client.classify(SAMPLES[:20], embeddings=True, **options)
    stored = {encoder: np.stack([each.embedding[encoder] for each in results]) for encoder in client.encoders}
    again = list(client.score(stored, batch_size=7, **options))
    assert [each.index for each in again] == list(range(20))
    for one, other in zip(results, again, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    with pytest.raises(ValueError, match="embeddings of metaclip, evaclip are needed, got metaclip"):
        list(client.score({"metaclip": stored["metaclip"]}))
    with pytest.raises(ValueError, match="differ in length"):
        list(client.score({**stored, "metaclip": stored["metaclip"][:3]}))


def test_a_label_set_of_ones_own(client: Client) -> None:
    (result,) = client.classify(SAMPLES[:1], label_set=PETS)
    assert result.classes == ("cat", "dog")
    assert list(result.encoder_scores) == list(client.encoders)
    assert PETS.id == set_id(PETS.spec)
    assert json.loads(PETS.spec)["extra"] == {"cat": ["a kitten"]}
    shown = client.label_set(PETS)
    assert shown["prompts"]["cat"] == ["a photo of a cat.", "cat", "a kitten"]
    with pytest.raises(clipchoir.BadRequestError, match='template "no" has no'):
        client.classify(SAMPLES[:1], label_set=LabelSet(["x"], ["no"]))


def test_the_labels_of_the_server(client: Client) -> None:
    assert client.label_sets()["default"] == "scenes" == client.service.default_label_set
    assert client.label_sets()["label_sets"]["moods"] == {"classes": 3, "prompts": 8}
    assert client.label_set("moods")["classes"] == ["a bright day", "night", "fog"]
    with pytest.raises(clipchoir.UnknownLabelSetError):
        client.label_set("pets")


def test_a_label_set_is_checked_without_being_embedded(client: Client) -> None:
    fresh = LabelSet(["a", "b"], ["never seen before {}", "long " * 80 + "{}"])
    for _ in range(2):
        assert client.check(fresh) == {
            "id": fresh.id,
            "classes": 2,
            "prompts": 4,
            "known": False,
            "cut": ["long " * 80 + "a", "long " * 80 + "b"],
        }
    client.classify(SAMPLES[:1], label_set=fresh)
    assert client.check(fresh)["known"] is True
    with pytest.raises(clipchoir.BadRequestError, match='class "a" is there twice'):
        client.check(LabelSet(["a", "a"]))


def test_label_sets_from_files(tmp_path: Path) -> None:
    (tmp_path / "pets.toml").write_text('classes = ["cat"]\ntemplates = ["a {}"]\n[extra]\ncat = ["a kitten"]\n')
    (tmp_path / "pets.json").write_text('{"classes": ["cat"], "templates": ["a {}"], "extra": {"cat": ["a kitten"]}}')
    one, other = LabelSet.from_file(tmp_path / "pets.toml"), LabelSet.from_file(tmp_path / "pets.json")
    assert one == other == LabelSet(["cat"], ["a {}"], {"cat": ["a kitten"]})
    for name, content in {
        "a.toml": "classes = [",
        "b.json": "{",
        "c.toml": 'labels = ["x"]',
        "d.json": "[]",
        "e.toml": 'classes = "cat"',
        "f.json": '{"classes": ["a"], "extra": 3}',
        "h.json": '{"classes": 5}',
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(clipchoir.BadLabelSetFileError, match=name):
            LabelSet.from_file(tmp_path / name)
    (tmp_path / "g.toml").write_bytes(b"\xff")
    for name in ("g.toml", "absent.toml"):
        with pytest.raises(clipchoir.BadLabelSetFileError, match=name):
            LabelSet.from_file(tmp_path / name)
    with pytest.raises(TypeError, match="templates must be a list of strings"):
        LabelSet(["x"], "a {}")


def test_status_counts_what_was_classified(client: Client) -> None:
    (before,) = client.status()
    client.classify(SAMPLES[:5])
    until = time.monotonic() + 10  # Triton counts after it has answered
    while (after := client.status()[0]).rows("zero_shot") - before.rows("zero_shot") < 5:
        assert time.monotonic() < until
    assert after.ready
    assert after.version.startswith("2.")
    assert after.service == client.service
    assert after.rows("zero_shot") - before.rows("zero_shot") == 5
    models = {model.name: model for model in after.models}
    assert {"preprocess", "metaclip", "evaclip", "ensembling", "zero_shot", "label_sets"} <= models.keys()
    assert models["metaclip"].state == "READY"
    assert models["metaclip"].compute_ms > 0
    assert models["metaclip"].executions > 0


def test_many_classes_do_not_slow_the_client_down_by_their_names(client: Client) -> None:
    large = LabelSet([f"class {number}" for number in range(500)])
    results = client.classify(SAMPLES[:8], label_set=large)
    assert results[0].classes == tuple(large.classes)
    named = {name: float(score) for name, score in zip(results[0].classes, results[0].scores, strict=True)}
    assert max(named, key=named.__getitem__) == results[0].label


async def some(count: int) -> AsyncIterator[Path]:
    for number in range(count):
        await asyncio.sleep(0)
        yield SAMPLES[number]


def test_the_asynchronous_client_answers_as_the_other_does(server: Triton, client: Client) -> None:
    expected = client.classify(SAMPLES[:20])

    async def work() -> None:
        async with AsyncClient(server.address.grpc) as asynchronous:
            assert await asynchronous.encoders() == client.encoders
            for images in (SAMPLES[:20], some(20)):
                results = await asynchronous.classify(images, batch_size=3)
                assert [each.source for each in results] == [each.source for each in expected]
                for one, other in zip(results, expected, strict=True):
                    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
            loose = [each async for each in asynchronous.stream(SAMPLES[:20], batch_size=3, ordered=False)]
            assert sorted(each.index for each in loose) == list(range(20))
            embedded = [each async for each in asynchronous.embed(some(3))]
            stored = {name: np.stack([each.embedding[name] for each in embedded]) for name in client.encoders}
            again = [each async for each in asynchronous.score(stored, batch_size=2)]
            assert [each.label for each in again] == [each.label for each in expected[:3]]
            assert (await asynchronous.label_sets())["default"] == "scenes"
            assert (await asynchronous.label_set("moods"))["classes"][1] == "night"
            assert (await asynchronous.check(PETS))["classes"] == 2
            assert (await asynchronous.status())[0].ready
            both = await asyncio.gather(asynchronous.classify(SAMPLES[:2]), asynchronous.classify(SAMPLES[2:4]))
            assert [len(each) for each in both] == [2, 2]
            with pytest.raises(clipchoir.UnknownLabelSetError):
                await asynchronous.classify(SAMPLES[:1], label_set="pets")
            with pytest.raises(TypeError, match="not one image"):
                asynchronous.stream("a.jpg")

    asyncio.run(work())


def test_a_cancelled_coroutine_leaves_a_client_that_works(server: Triton) -> None:
    async def work() -> None:
        async with AsyncClient(server.address.grpc) as client:
            enough = asyncio.Event()

            async def endless() -> AsyncIterator[Path]:
                for number in itertools.count():
                    yield SAMPLES[number % len(SAMPLES)]
                    if number == 20:
                        enough.set()

            task = asyncio.create_task(client.classify(endless(), batch_size=2))
            await enough.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.classify(SAMPLES[:1]))[0].label

    asyncio.run(work())


def test_the_event_loop_is_not_held_up(server: Triton) -> None:
    async def work() -> float:
        longest, running = 0.0, True
        loop = asyncio.get_running_loop()

        async def tick() -> None:
            nonlocal longest
            while running:
                before = loop.time()
                await asyncio.sleep(0.01)
                longest = max(longest, loop.time() - before)

        ticking = asyncio.create_task(tick())
        async with AsyncClient(server.address.grpc) as client:
            await client.classify(SAMPLES, batch_size=8)
        running = False
        await ticking
        return longest

    # The machine may take that long now and then, but not every time.
    assert any(asyncio.run(work()) < 0.3 for _ in range(4))
