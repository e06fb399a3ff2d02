"""A label set file means the same to the client, which sends it, as to the export, which embeds it."""

import json
from pathlib import Path

import pytest

import clipchoir
from clipchoir_export.errors import SpecError
from clipchoir_export.spec import read_label_set
from clipchoir_steps.label_sets.spec import LabelSet, Limits

LIMITS = Limits(classes=100, prompts=1000, spec_bytes=1 << 20)
GOOD = {
    "names alone": {"classes": ["cat", "dog"]},
    "templates": {"classes": ["cat", "dog"], "templates": ["a {}", "{} {}"]},
    "no templates, extra prompts of all": {
        "classes": ["cat", "dog"],
        "templates": [],
        "extra": {"cat": ["a kitten"], "dog": ["a puppy"]},
    },
    "extra prompts beside the names": {"classes": ["cat", "dog"], "extra": {"cat": ["a kitten"]}},
    "an empty list of extra prompts": {"classes": ["cat", "dog"], "extra": {"cat": []}},
    "no extra": {"classes": ["cat", "dog"], "templates": ["a {}"], "extra": {}},
    "other scripts": {"classes": ["K\u00fcste", "\u732b"], "templates": ["\u4e00\u53ea{}"]},
}
BAD = {
    "neither templates nor extra": {"classes": ["cat"], "templates": []},
    "extra of one class alone": {"classes": ["cat", "dog"], "templates": [], "extra": {"cat": ["a kitten"]}},
    "an unknown key": {"classes": ["cat"], "template": ["{}"]},
    "a class twice": {"classes": ["cat", "cat"]},
    "half a character": {"classes": ["\ud800"]},
    "no classes": {"templates": ["{}"]},
    "a string for a list": {"classes": "cat"},
    "extra of another class": {"classes": ["cat"], "extra": {"dog": ["a puppy"]}},
}


def file_of(folder: Path, content: object) -> Path:
    path = folder / "pets.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_both_make_the_same_prompts(tmp_path: Path, content: object) -> None:
    path = file_of(tmp_path, content)
    sent = LabelSet.parse_json("pets", clipchoir.LabelSet.from_file(path).spec.encode(), LIMITS)
    embedded = read_label_set(str(path))
    assert sent.classes == embedded.classes
    assert sent.prompts() == embedded.prompts()


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_both_refuse_the_same_with_the_same_words(tmp_path: Path, content: object) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(clipchoir.BadLabelSetFileError) as client:
        clipchoir.LabelSet.from_file(path)
    with pytest.raises(SpecError) as export:
        read_label_set(str(path))
    assert str(client.value) == str(export.value)
    assert str(path) in str(client.value)


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_both_refuse_what_is_nested_too_deeply_to_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pets.{suffix}"
    brackets = "[" * 100_000 + "]" * 100_000
    path.write_text(f'{{"classes": {brackets}}}' if suffix == "json" else f"classes = {brackets}")
    with pytest.raises(clipchoir.BadLabelSetFileError, match=f"pets.{suffix} is not {suffix.upper()}"):
        clipchoir.LabelSet.from_file(path)
    with pytest.raises(SpecError, match=f"pets.{suffix}: is not valid {suffix.upper()}"):
        read_label_set(str(path))


def test_what_a_good_file_is_sent_as_has_not_changed() -> None:
    label_set = clipchoir.LabelSet(["cat", "dog"], ["a {}"], {"cat": ["a kitten"]})
    assert label_set.spec == '{"classes":["cat","dog"],"templates":["a {}"],"extra":{"cat":["a kitten"]}}'
    assert clipchoir.LabelSet(["cat"]).spec == '{"classes":["cat"]}'
