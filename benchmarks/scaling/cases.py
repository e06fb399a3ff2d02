"""What benchmarks/scaling/run.py measures: the demo pair, with one thing changed at a time."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np

from benchmarks.common.fixtures import DEMO, build
from benchmarks.common.in_process import encoder_names
from clipchoir_server.triton import ServerError
from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.layout import CONFIG, ENSEMBLING, label_set_file, newest, read_manifest

BATCH = 8  # images per request, where nothing else is said
SIDE = 224
IMAGES = 64
LARGE_BATCH = 2  # images per request of the sizes: the largest ones take long
SCENES = 6  # distinct images of the sizes, the same ones at each: large ones take long to draw
ENSEMBLE, NAMELESS = "zero_shot", "zero_shot_without_classes"
BUILT = DEMO.parent / "scaling"
COUNTS = (1, 2, 4)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = ((64, 64), (224, 224), (512, 512), (1024, 1024), (1600, 1200), (4000, 3000))
CLASSES = (6, 30, 100, 300, 1000)
TEMPLATES = (1, 8, 52)
TEMPLATES_OF = (100, 1000)  # classes
ENCODERS = (
    ("metaclip", "open_clip", "builtin:demo-metaclip", 2.3),
    ("evaclip", "eva_clip", "builtin:demo-evaclip", 2.0),
    ("metaclip_again", "open_clip", "builtin:demo-metaclip", 1.6),
    ("evaclip_again", "eva_clip", "builtin:demo-evaclip", 1.3),
)  # name, source, checkpoint, sharpness


class Axis(str, Enum):
    """What is changed."""

    INSTANCES = "instances"
    BATCH = "batch"
    SIZE = "size"
    CLASSES = "classes"
    TEMPLATES = "templates"
    ENCODERS = "encoders"


@dataclass(frozen=True)
class LabelSet:
    """A label set that is made up: what matters is how large it is.

    Attributes:
        classes: how many.
        templates: prompts of each.
    """

    classes: int
    templates: int

    @property
    def name(self) -> str:
        return f"{self.classes}x{self.templates}"

    def put_into(self, repository: Path) -> None:
        """Add it to the repository, unless it is there; a server that is running finds it.

        Its embeddings are those of the demo's prompts, over and over.

        Raises:
            ServerError: this is no repository.
        """
        folder = newest(repository / ENSEMBLING)
        if folder is None:
            raise ServerError(f"{repository} has no ensembling; build it with: make demo")
        file = label_set_file(folder, self.name)
        if file.exists():
            return
        encoders = read_manifest(folder)["encoders"]
        fingerprints = {name: each["fingerprint"] for name, each in encoders.items()}
        demo = EmbeddedLabelSet.load(file.with_name("scenes.safetensors"), fingerprints)
        classes = tuple(f"class {number:04}" for number in range(self.classes))
        prompts = tuple(f"picture {number:02} of {name}" for name in classes for number in range(self.templates))
        EmbeddedLabelSet(
            classes=classes,
            prompts=prompts,
            prompt_counts=np.full(self.classes, self.templates),
            embeddings={name: np.resize(each, (len(prompts), each.shape[1])) for name, each in demo.embeddings.items()},
            fingerprints=fingerprints,
        ).save(file)


@dataclass(frozen=True)
class Case:
    """A load on a repository.

    Attributes:
        value: what was changed, as a number.
        label: the same for tables.
        repository: to serve.
        batch: images per request.
        size: of the images, (width, height).
        images: how many distinct ones.
        model: to send requests to.
        label_set: to compare with; None: the demo's own, 6 classes with 52 prompts each.
    """

    value: float
    label: str
    repository: Path
    batch: int = BATCH
    size: tuple[int, int] = (SIDE, SIDE)
    images: int = IMAGES
    model: str = ENSEMBLE
    label_set: LabelSet | None = None


@dataclass(frozen=True)
class Series:
    """Cases that differ in one thing.

    Attributes:
        axis: in what.
        name: of this series among those of its axis; empty: it is the only one.
        cases: by value. The first one is what the others are compared with.
    """

    axis: Axis
    name: str
    cases: tuple[Case, ...]

    def ends(self) -> "Series":
        """The first and the last case alone."""
        return replace(self, cases=(self.cases[0], self.cases[-1]))


def series_of(axis: Axis, scratch: Path, ends: bool) -> list[Series]:
    """What to measure for an axis, its repositories ready to be served.

    Args:
        axis: which one.
        scratch: folder for copies of the demo's repository.
        ends: the first and the last case of each series alone.

    Raises:
        ServerError: a repository is missing, cannot be built, or is not as expected.
    """
    if not DEMO.is_dir():
        raise ServerError(f"{DEMO} is missing; build it with: make demo")
    found = _SERIES[axis](scratch)
    found = [each.ends() for each in found] if ends else found
    for repository in dict.fromkeys(case.repository for each in found for case in each.cases):
        if repository.parent == BUILT:
            _build_encoders(repository)
    return found


def _instances(scratch: Path) -> list[Series]:
    series = []
    for name, models in (("preprocess", ["preprocess"]), ("each encoder", encoder_names(DEMO))):
        copies = {
            count: _copy(scratch / f"{models[0]}-{count}", instances=dict.fromkeys(models, count)) for count in COUNTS
        }
        cases = tuple(Case(count, str(count), copy) for count, copy in copies.items())
        series.append(Series(Axis.INSTANCES, name, cases))
    return series


def _batch(_: Path) -> list[Series]:
    return [Series(Axis.BATCH, "", tuple(Case(batch, str(batch), DEMO, batch) for batch in BATCHES))]


def _size(_: Path) -> list[Series]:
    cases = (
        Case(width * height / 1e6, f"{width}x{height}", DEMO, LARGE_BATCH, (width, height), SCENES)
        for width, height in SIZES
    )
    return [Series(Axis.SIZE, "", tuple(cases))]


def _classes(scratch: Path) -> list[Series]:
    series = []
    for name, model in (("all outputs", ENSEMBLE), ("without the classes' names", NAMELESS)):
        copy = _copy(scratch / f"classes-{model}")  # of its own, since label sets stay in a repository
        cases = (Case(each, str(each), copy, model=model, label_set=LabelSet(each, 1)) for each in CLASSES)
        series.append(Series(Axis.CLASSES, name, tuple(cases)))
    return series


def _templates(scratch: Path) -> list[Series]:
    series = []
    for classes in TEMPLATES_OF:
        copy = _copy(scratch / f"templates-{classes}")
        cases = (Case(each, str(each), copy, model=NAMELESS, label_set=LabelSet(classes, each)) for each in TEMPLATES)
        series.append(Series(Axis.TEMPLATES, f"{classes} classes", tuple(cases)))
    return series


def _encoders(_: Path) -> list[Series]:
    cases = (Case(count, str(count), BUILT / f"encoders-{count}") for count in range(1, len(ENCODERS) + 1))
    return [Series(Axis.ENCODERS, "", tuple(cases))]


_SERIES: Mapping[Axis, Callable[[Path], list[Series]]] = {
    Axis.INSTANCES: _instances,
    Axis.BATCH: _batch,
    Axis.SIZE: _size,
    Axis.CLASSES: _classes,
    Axis.TEMPLATES: _templates,
    Axis.ENCODERS: _encoders,
}


def _build_encoders(repository: Path) -> None:
    """A repository of as many of the encoders as its name says."""
    count = int(repository.name.rpartition("-")[2])
    spec = f'name = "{repository.name}"\nlabel_sets = ["scenes"]\n'
    for name, source, checkpoint, sharpness in ENCODERS[:count]:
        spec += f'[[encoders]]\nname = "{name}"\nsource = "{source}"\n'
        spec += f'checkpoint = "{checkpoint}"\nsharpness = {sharpness}\n'
    with tempfile.TemporaryDirectory(prefix="clipchoir-scaling-") as folder:
        path = Path(folder) / "spec.toml"
        path.write_text(spec)
        build(path, repository)


def _copy(target: Path, instances: Mapping[str, int] | None = None) -> Path:
    """The demo's repository in another place: its own configs, and links to everything else.

    Beside `zero_shot` it has the same ensemble without the output `classes`: perf_analyzer asks for all outputs.

    Args:
        target: to make.
        instances: by model; the others stay as they are.
    """
    shutil.copytree(
        DEMO.resolve(), target, ignore=shutil.ignore_patterns(CONFIG, "__pycache__"), copy_function=link_or_copy
    )
    for path in sorted(DEMO.glob(f"*/{CONFIG}")):
        text, model = path.read_text(), path.parent.name
        if instances and model in instances:
            text = re.sub(r"^instance_group .*\n", "", text, flags=re.MULTILINE)
            text += f"instance_group [ {{ count: {instances[model]} }} ]\n"
        (target / model / CONFIG).write_text(text)
    lines = (DEMO / ENSEMBLE / CONFIG).read_text().replace(f'"{ENSEMBLE}"', f'"{NAMELESS}"').splitlines(keepends=True)
    kept = [line for line in lines if '"classes"' not in line]
    if len(lines) - len(kept) != 2:
        raise ServerError(f"{DEMO / ENSEMBLE / CONFIG} should name the output classes in two lines")
    (target / NAMELESS / "1").mkdir(parents=True)
    (target / NAMELESS / CONFIG).write_text("".join(kept))
    return target


def link_or_copy(source: str, target: str) -> str:
    """A hard link, or a copy where the folders are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
