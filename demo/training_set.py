"""The training pictures: rendered once, by several processes, into files that a later run picks up again."""

from __future__ import annotations

import hashlib
import io
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from demo.scenes import CLASSES, SMALLEST, Scene, bounded_size, render

SIDE = 256
"""Side of the stored pictures: a little more than the encoders see, so that they can be cropped."""
LONGEST = 800
"""Longest side at which training pictures are drawn; evaluation goes to the full size."""
SHARD = 240
TRAINING_SEED = 10_000_000


@dataclass(frozen=True)
class Facts:
    """What is true of a picture, for the captions to choose from."""

    class_name: str
    time: str
    weather: str
    things: frozenset[str]
    faults: frozenset[str]

    @classmethod
    def of(cls, scene: Scene) -> Facts:
        """The facts of a scene."""
        return cls(scene.class_name, scene.time, scene.weather, scene.things, scene.faults)


@dataclass(frozen=True)
class TrainingSet:
    """Pictures `(N, SIDE, SIDE, 3)` uint8 and the facts of each."""

    pictures: NDArray[np.uint8]
    facts: list[Facts]


def load(folder: Path, count: int, processes: int) -> TrainingSet:
    """Render what is missing of the first `count` pictures into `folder`, and read them all.

    Raises:
        ValueError: `folder` holds the pictures of another version of the renderer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_renderer(folder)
    shards = [folder / f"{number:04}.npz" for number in range(-(-count // SHARD))]
    missing = [number for number, path in enumerate(shards) if not path.exists()]
    with Progress() as progress, ProcessPoolExecutor(processes) as pool:
        task = progress.add_task("rendering", total=len(shards), completed=len(shards) - len(missing))
        try:
            for done in as_completed([pool.submit(_render_shard, shards[number], number) for number in missing]):
                done.result()
                progress.advance(task)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    pictures = np.empty((len(shards) * SHARD, SIDE, SIDE, 3), np.uint8)
    facts: list[Facts] = []
    for number, path in enumerate(shards):
        with np.load(path) as shard:
            pictures[number * SHARD : (number + 1) * SHARD] = shard["pictures"]
            facts += [_facts_from(entry) for entry in json.loads(str(shard["facts"]))]
    return TrainingSet(pictures[:count], facts[:count])


def _render_shard(path: Path, number: int) -> None:
    pictures = np.empty((SHARD, SIDE, SIDE, 3), np.uint8)
    facts = []
    for offset in range(SHARD):
        index = number * SHARD + offset
        seed = TRAINING_SEED + index
        scene = render(CLASSES[index % len(CLASSES)], seed, bounded_size(seed, LONGEST))
        stored = Image.open(io.BytesIO(scene.jpeg()))
        pictures[offset] = np.asarray(stored.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        facts.append(Facts.of(scene))
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    with unfinished.open("wb") as stream:
        np.savez(stream, pictures=pictures, facts=np.array(json.dumps([_to_json(entry) for entry in facts])))
    unfinished.rename(path)


def _to_json(facts: Facts) -> list[object]:
    return [facts.class_name, facts.time, facts.weather, sorted(facts.things), sorted(facts.faults)]


def _facts_from(entry: list[Any]) -> Facts:
    class_name, time, weather, things, faults = entry
    return Facts(class_name, time, weather, frozenset(things), frozenset(faults))


def _check_renderer(folder: Path) -> None:
    """Compare what the renderer draws now with what it drew when the folder was begun."""
    digest = hashlib.sha256()
    for seed in range(4 * len(CLASSES)):
        digest.update(render(CLASSES[seed % len(CLASSES)], seed, SMALLEST).image.tobytes())
    note = folder / "renderer.sha256"
    if not note.exists():
        note.write_text(digest.hexdigest(), encoding="utf-8")
    elif note.read_text(encoding="utf-8") != digest.hexdigest():
        raise ValueError(f"{folder}: its pictures are another renderer's; delete the folder to draw them anew")
