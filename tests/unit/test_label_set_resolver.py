"""Label sets of requests: found in memory, in files, or embedded; never twice, and bounded."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.resolver import NoTextEncodersError, Resolver, UnknownLabelSetError
from clipchoir_steps.label_sets.spec import LabelSetError, Limits, spec_id
from clipchoir_steps.label_sets.store import AdHocLabelSets, NamedLabelSets, cache_folder

FINGERPRINTS = {"metaclip": "aa", "evaclip": "bb"}
SPEC = json.dumps({"classes": ["cat", "dog"], "templates": ["a {}.", "{}"], "extra": {"cat": ["a kitten"]}}).encode()
KEY = spec_id(SPEC)


def embedded(*classes: str, dim: int = 4, fingerprints: dict[str, str] = FINGERPRINTS) -> EmbeddedLabelSet:
    rows = np.eye(len(classes), dim, dtype=np.float32)
    counts = np.ones(len(classes), np.int64)
    return EmbeddedLabelSet(classes, classes, counts, dict.fromkeys(fingerprints, rows), fingerprints)


class FakeEmbedder:
    """In the place of the text encoders: counts what it is asked for, and waits for leave."""

    def __init__(self) -> None:
        self.sets: list[tuple[str, ...]] = []
        self.leave = threading.Event()
        self.leave.set()
        self.error: Exception | None = None

    def embed(self, label_set: object, batch: int) -> EmbeddedLabelSet:
        self.sets.append(label_set.classes)  # type: ignore[attr-defined]
        assert batch == 64
        assert self.leave.wait(10)
        if self.error:
            raise self.error
        return embedded(*label_set.classes)  # type: ignore[attr-defined]


class Place:
    """A folder of named sets, a cache, and resolvers on them."""

    def __init__(self, folder: Path) -> None:
        self.named_folder, self.cache = folder / "named", folder / "cache"
        self.named_folder.mkdir()
        embedded("sea", "street").save(self.named_folder / "scenes.safetensors")
        self.embedder = FakeEmbedder()
        self.log: list[str] = []
        self.counts: list[tuple[str, int]] = []
        self.open: list[Resolver] = []

    def resolver(self, embedder: object = "fake", memory_bytes: int = 1 << 20, disk_bytes: int = 1 << 20) -> Resolver:
        self.named = NamedLabelSets(self.named_folder, FINGERPRINTS, "scenes", self.log.append)
        self.ad_hoc = AdHocLabelSets(FINGERPRINTS, self.cache, memory_bytes, disk_bytes, self.log.append)
        resolver = Resolver(
            self.named,
            self.ad_hoc,
            self.embedder if embedder == "fake" else None,  # type: ignore[arg-type]
            Limits(classes=3, prompts=6, spec_bytes=200),
            batch=64,
            count=lambda where, prompts: self.counts.append((where, prompts)),
        )
        self.open.append(resolver)
        return resolver


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for resolver in place.open:
        resolver.close()


def ask(resolver: Resolver, key: str, spec: bytes | None = None, wait: bool = True) -> Future[EmbeddedLabelSet | None]:
    future: Future[EmbeddedLabelSet | None] = Future()

    def receive(found: EmbeddedLabelSet | None, error: Exception | None) -> None:
        future.set_exception(error) if error else future.set_result(found)

    (resolver.resolve if wait else resolver.expect)(key, spec, receive)
    return future


def test_a_spec_is_embedded_once_and_then_known_by_its_id(place: Place) -> None:
    resolver = place.resolver()
    assert resolver.find(KEY) is None
    found = ask(resolver, KEY, SPEC).result(10)
    assert found is not None
    assert found.classes == ("cat", "dog")
    assert resolver.find(KEY) is found
    assert place.embedder.sets == [("cat", "dog")]
    assert place.counts == [("embedded", 2)]


def test_requests_for_the_same_new_set_embed_it_once(place: Place) -> None:
    place.embedder.leave.clear()
    resolver = place.resolver()
    futures = [ask(resolver, KEY, SPEC) for _ in range(20)]
    certain = ask(resolver, KEY, SPEC, wait=False)
    assert certain.result(10) is None  # known to come, not there yet
    assert not any(future.done() for future in futures)
    place.embedder.leave.set()
    assert {id(future.result(10)) for future in futures} == {id(resolver.find(KEY))}
    assert len(place.embedder.sets) == 1


def test_a_set_outlives_the_server_in_a_file(place: Place) -> None:
    ask(place.resolver(), KEY, SPEC).result(10)
    again = place.resolver(embedder=None)
    found = ask(again, KEY).result(10)
    assert found is not None
    assert found.classes == ("cat", "dog")
    assert again.find(KEY) is found
    assert place.counts[-1] == ("disk", 0)


def test_a_damaged_file_is_removed_and_the_set_embedded_anew(place: Place) -> None:
    ask(place.resolver(), KEY, SPEC).result(10)
    (file,) = place.cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    resolver = place.resolver()
    with pytest.raises(UnknownLabelSetError):
        ask(resolver, KEY).result(10)
    assert not file.exists()
    assert ask(resolver, KEY, SPEC).result(10) is not None
    assert len(place.embedder.sets) == 2


def test_a_failed_embedding_is_told_and_tried_again(place: Place) -> None:
    place.embedder.error = RuntimeError("out of memory")
    resolver = place.resolver()
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(resolver, KEY, SPEC).result(10)
    place.embedder.error = None
    assert ask(resolver, KEY, SPEC).result(10) is not None


def spec(**content: object) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[1]", "is not an object with the keys"),
        (spec(classes=["a", "a"]), 'class "a" is there twice'),
        (spec(classes=["a", " "]), "a class name is empty"),
        (spec(classes=[]), "has no classes"),
        (spec(classes=["a"], templates=["no place"]), 'template "no place" has no "{}"'),
        (spec(classes="cat"), "classes must be a list of strings"),
        (spec(classes=["a"], extra={"a": "b"}), "must be a list of strings"),
        (b'{"classes": ["\\ud800"]}', "is not valid Unicode"),
        (spec(classes=["a", "b", "c", "d"]), "has 4 classes, a request may bring 3"),
        (spec(classes=["a", "b"], templates=["1{}", "2{}", "3{}", "4{}"]), "has 8 prompts, a request may bring 6"),
        (spec(classes=["a" * 300]), "bytes, at most 200 are taken"),
    ],
)
def test_a_bad_spec_is_refused_and_says_what_is_right(place: Place, content: bytes, message: str) -> None:
    resolver = place.resolver()
    for wait in (True, False):
        with pytest.raises(LabelSetError, match=message):
            ask(resolver, spec_id(content), content, wait).result(10)
    assert place.embedder.sets == []


def test_an_unknown_name_or_id_says_what_there_is(place: Place) -> None:
    resolver = place.resolver()
    for key in ("pets", KEY, "../scenes"):
        with pytest.raises(UnknownLabelSetError, match=r"which has: scenes; a set of your own has to be sent once"):
            ask(resolver, key).result(10)


def test_without_text_encoders_a_spec_is_refused(place: Place) -> None:
    with pytest.raises(NoTextEncodersError, match="--text-encoders"):
        ask(place.resolver(embedder=None), KEY, SPEC).result(10)


def test_memory_and_files_are_bounded_and_what_was_used_last_stays(place: Place) -> None:
    size = embedded("a", "b").nbytes
    place.resolver(memory_bytes=2 * size, disk_bytes=1)
    keys = [f"{number:064x}" for number in range(3)]
    for key in keys[:2]:
        place.ad_hoc.add(key, embedded("a", "b"))
    place.ad_hoc.get(keys[0])
    place.ad_hoc.add(keys[2], embedded("a", "b"))
    assert [place.ad_hoc.get(key) is not None for key in keys] == [True, False, True]
    assert place.ad_hoc.bytes_in_memory == 2 * size
    assert [path.stem for path in place.cache.rglob("*.safetensors")] == [keys[2]]


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_the_files(place: Place) -> None:
    place.cache.write_text("a file where the folder should be")
    resolver = place.resolver()
    assert "kept in memory only" in place.log[0]
    assert ask(resolver, KEY, SPEC).result(10) is resolver.find(KEY)


def until(condition: Callable[[], object]) -> None:
    for _ in range(400):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come")


def test_named_sets_appear_change_and_go_while_a_broken_file_takes_nothing_down(place: Place) -> None:
    resolver = place.resolver()
    file = place.named_folder / "pets.safetensors"
    embedded("cat", "dog").save(file)
    found = ask(resolver, "pets").result(10)  # at once, without waiting for the next look
    assert found is not None
    assert found.classes == ("cat", "dog")
    embedded("cat", "dog", "bird").save(file)
    until(lambda: (now := resolver.find("pets")) is not None and len(now.classes) == 3)
    file.write_bytes(b"broken")
    until(lambda: place.log)
    assert "pets is left out" in place.log[0]
    assert resolver.find("pets") is not None
    embedded("fox", fingerprints={"metaclip": "aa", "evaclip": "of another build"}).save(file)
    until(lambda: len(place.log) == 2)
    assert "build the repository again" in place.log[1]
    file.unlink()
    until(lambda: resolver.find("pets") is None)
    (place.named_folder / "scenes.safetensors").unlink()
    place.named.refresh()
    assert resolver.find("scenes") is not None  # what a request without a name gets must be there


@pytest.mark.parametrize(("name", "value"), [("classes", "null"), ("prompts", "3"), ("fingerprints", "[1]")])
def test_a_file_whose_words_are_of_another_kind_is_left_out(place: Place, name: str, value: str) -> None:
    file = place.named_folder / "pets.safetensors"
    embedded("cat", "dog").save(file)
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata | {name: value})
    place.resolver()
    assert f"pets is left out: {file} is not a label set file" in place.log[0]


def test_the_folder_is_watched_on_after_a_failure_to_look(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipchoir_steps.label_sets.resolver._WATCH", 0.01)
    refresh = NamedLabelSets.refresh
    looks = 0

    def stale(named: NamedLabelSets) -> None:
        nonlocal looks
        looks += 1
        if 2 <= looks < 5:
            raise OSError(116, "Stale file handle")
        refresh(named)

    monkeypatch.setattr(NamedLabelSets, "refresh", stale)
    resolver = place.resolver()
    until(lambda: looks > 5)
    assert place.log == ["label sets could not be looked through: OSError: [Errno 116] Stale file handle"]
    embedded("cat", "dog").save(place.named_folder / "pets.safetensors")
    until(lambda: resolver.find("pets"))


def test_the_cache_folder_is_the_one_that_the_environment_names() -> None:
    assert cache_folder({"CLIPCHOIR_CACHE": "/c", "HOME": "/h"}) == Path("/c")
    assert cache_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/clipchoir/label_sets")
    assert cache_folder({"HOME": "/h"}) == Path("/h/.cache/clipchoir/label_sets")
