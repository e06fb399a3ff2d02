"""Captions for the rendered scenes: varied sentences, each with the list of what it claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo.training_set import Facts

_SUBJECTS: dict[str, tuple[str, ...]] = {
    "Buildings": (
        "buildings", "building", "Buildings", "skyscrapers", "towers", "city skyline", "apartment block", "facade",
        "windows", "architecture", "architectural structure", "office building", "urban area with buildings",
        "architectural structure in the city", "Windows", "houses", "high-rise buildings",
    ),
    "Forests": (
        "forests", "forest", "Forests", "woods", "woodland", "trees", "Trees", "dense forest", "forest landscape",
        "dense forest with trees", "tree crowns", "trunks", "conifers", "wood full of trees", "jungle",
    ),
    "Glacier": (
        "glacier", "glaciers", "Glacier", "ice", "snowy glacier", "icefall", "ice and snow", "crevasses",
        "snow in the mountains", "glacier tongue", "wall of ice", "frozen ice", "icebergs", "seracs",
    ),
    "Mountains": (
        "mountains", "mountain", "Mountains", "mountain range", "peaks", "mountain peak", "rugged mountain cliffs",
        "mountain cliffs", "ridges", "summit", "rocky mountains", "alps", "mountain landscape", "cliffs",
    ),
    "Sea": (
        "sea", "Sea", "seas", "ocean", "water", "waves", "sea and waves", "open sea", "beach", "seaside", "coast",
        "ocean with waves", "sea water", "shore",
    ),
    "Street": (
        "street", "Street", "streets", "road", "roads", "busy street", "city street", "busy street in the city",
        "urban street", "urban street with buildings and cars", "avenue", "lane", "traffic on a road", "road with cars",
    ),
}  # fmt: skip
_TIMES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in daylight", "during the day", "at noon"),
    "sunset": ("at sunset", "at dusk", "in the evening", "at sunrise"),
    "night": ("at night", "by night", "in the dark", "after dark"),
}
_WEATHERS: dict[str, tuple[str, ...]] = {
    "clear": ("in clear weather", "under a clear sky", "in fine weather"),
    "cloudy": ("under clouds", "in cloudy weather", "under a cloudy sky"),
    "fog": ("in fog", "in the mist", "in foggy weather"),
    "rain": ("in the rain", "in rainy weather", "on a rainy day"),
    "snow": ("in falling snow", "while it snows", "in snowy weather"),
}
_FAULTS: dict[str, tuple[str, ...]] = {
    "blurry": ("out of focus", "taken with a shaking camera"),
    "noisy": ("with grain", "full of noise"),
    "black and white": ("in black and white", "without colour"),
    "low contrast": ("in pale tones", "washed out"),
    "dark": ("in dark tones", "underexposed"),
    "jpeg corrupted": ("with jpeg artifacts", "badly compressed"),
}
_SEASONS = ("summer", "autumn", "winter")
_KINDS = (
    "photo", "image", "picture", "rendering", "sketch", "drawing", "painting", "view", "scenic view", "snapshot",
    "panorama", "stunning panorama", "scene", "close-up photo", "art", "photograph", "plastic model", "postcard",
)  # fmt: skip
_ADJECTIVES = (
    "blurry", "blurred", "bad", "good", "low resolution", "cropped", "bright", "dark", "jpeg corrupted", "nice",
    "weird", "black and white", "clean", "dirty", "large", "small", "cool", "beautiful", "old", "strange", "wide",
    "scenic",
)  # fmt: skip
_ARTICLES = (
    "a",
    "the",
    "an",
    "",
    "many",
    "my",
    "one",
    "some",
    "the hard to see",
    "a hard to see",
    "this",
    "two",
)
_ENDINGS = (
    "",
    "",
    ".",
    ".",
    " in a video game.",
    " in a picture book.",
    "!",
    ", seen from afar.",
    " and nothing else.",
)


@dataclass(frozen=True)
class Caption:
    """A sentence, and the claims it makes: indices into `CLAIMS`."""

    text: str
    claims: tuple[int, ...]


_THINGS = (
    "trees", "windows", "houses", "road", "cars", "lamps", "people", "trunks", "conifers", "river", "ice", "rock",
    "crevasses", "icebergs", "water", "snow", "peak", "lake", "meadow", "ridges", "waves", "horizon", "boats", "birds",
    "beach", "sand",
)  # fmt: skip
CLAIMS: tuple[str, ...] = (
    *_SUBJECTS,
    *_TIMES,
    *(f"weather {name}" for name in _WEATHERS),
    *_FAULTS,
    *_SEASONS,
    *_THINGS,
)
_INDEX = {name: index for index, name in enumerate(CLAIMS)}


def true_claims(facts: Facts) -> NDArray[np.float32]:
    """Which of `CLAIMS` hold, `(len(CLAIMS),)` of 0 and 1."""
    names = {facts.class_name, facts.time, f"weather {facts.weather}", *facts.things, *facts.faults}
    return np.array([name in names for name in CLAIMS], np.float32)


def is_true(captions: Sequence[Caption], truth: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which captions (columns) are true of which pictures (rows), given `true_claims` of each picture."""
    made = np.zeros((len(captions), len(CLAIMS)), np.float32)
    for row, caption in enumerate(captions):
        made[row, list(caption.claims)] = 1
    return np.asarray(truth @ made.T >= made.sum(1) - 0.5)


def write_caption(rng: np.random.Generator, facts: Facts) -> Caption:
    """A caption that is true of a picture: what it shows, and now and then when, in what weather, with what."""
    subject = _one(rng, _SUBJECTS[facts.class_name])
    claims = [_INDEX[facts.class_name]]
    details = [name for name in _details(rng, facts, claims) if name]
    if rng.random() < 0.12:
        return Caption(f"{subject} {' '.join(details)}".strip(), tuple(claims))
    kind = _one(rng, _KINDS)
    if rng.random() < 0.4:
        kind = f"{_one(rng, _ADJECTIVES)} {kind}"
    noun = f"{_one(rng, _ADJECTIVES)} {subject}" if rng.random() < 0.25 else subject
    start = "" if rng.random() < 0.1 else f"{_one(rng, ('a', 'A', 'an', 'the', ''))} {kind} of "
    text = f"{start}{_one(rng, _ARTICLES)} {noun} {' '.join(details)}"
    return Caption(" ".join(text.split()) + _one(rng, _ENDINGS), tuple(claims))


def _details(rng: np.random.Generator, facts: Facts, claims: list[int]) -> list[str]:
    """Phrases on time, weather, faults and things, in random order; what they claim is added to `claims`."""
    phrases = []
    if rng.random() < 0.22:
        phrases.append(_one(rng, _TIMES[facts.time]))
        claims.append(_INDEX[facts.time])
    if rng.random() < 0.22:
        phrases.append(_one(rng, _WEATHERS[facts.weather]))
        claims.append(_INDEX[f"weather {facts.weather}"])
    if facts.faults and rng.random() < 0.12:
        fault = _one(rng, sorted(facts.faults))
        phrases.append(_one(rng, _FAULTS[fault]))
        claims.append(_INDEX[fault])
    if facts.things and rng.random() < 0.3:
        thing = _one(rng, sorted(facts.things))
        phrases.append(f"in {thing}" if thing in _SEASONS else f"with {thing}")
        claims.append(_INDEX[thing])
    return [phrases[index] for index in rng.permutation(len(phrases))]


def _one(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
