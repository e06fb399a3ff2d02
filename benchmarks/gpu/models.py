"""The pair that is measured: checkpoints of true size with random weights, and the repository made of them."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from rich.console import Console

from clipchoir_export.families.registry import image_skeleton
from clipchoir_export.onnx.graph import DTYPES
from clipchoir_export.spec import EncoderSpec, Precision, checkpoint_path, find_ensemble, load_ensemble
from clipchoir_steps.layout import is_repository, newest, read_manifest

_MARGIN = 2_000_000_000  # bytes of disk
# Of the card, beside the weights: CUDA's own, and an estimate of what an image takes in the largest encoder.
_OVERHEAD = 2_500_000_000
_PER_IMAGE, _OF_WEIGHTS = 80_000_000, 35_000_000_000
_CONFIGS = ("config.json", "open_clip_config.json")  # of checkpoints that say their own architecture

console = Console(stderr=True, highlight=False, soft_wrap=True)


class ModelsError(Exception):
    """The models cannot be made; the message says what would be right."""


class Shapes(str, Enum):
    """Whose sizes the pair has."""

    SCENES = "scenes"
    SCENES_8B = "scenes-8b"
    TINY = "tiny"


_ENSEMBLES = {Shapes.SCENES: "scenes", Shapes.SCENES_8B: "scenes-8b", Shapes.TINY: "demo"}


@dataclass(frozen=True)
class Model:
    """One encoder of the pair.

    Attributes:
        spec: of the ensemble whose sizes it has.
        origin: file of that ensemble.
        precision: of the weights, in the checkpoint and in the graph.
        folder: of its checkpoint.
    """

    spec: EncoderSpec
    origin: Path
    precision: Precision
    folder: Path

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.spec.architecture or self.spec.checkpoint.partition(':')[2]}, {self.precision}"

    @property
    def is_written(self) -> bool:
        return (self.folder / "done").is_file()

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint."""
        if self.spec.architecture is not None:
            from benchmarks.export.scale import tensor_shapes

            return tensor_shapes(self.spec.source, self.spec.architecture)
        from clipchoir_export.checkpoints.files import open_checkpoint

        tensors = open_checkpoint(checkpoint_path(self.spec.checkpoint, self.origin))
        return {name: tensor.shape for name, tensor in tensors.items()}

    @cached_property
    def weight_bytes(self) -> int:
        """Of the image tower."""
        tower, _ = image_skeleton(self.spec, self.origin)
        return sum(each.numel() for each in tower.parameters()) * DTYPES[self.precision].itemsize

    @property
    def checkpoint_bytes(self) -> int:
        """Of both towers."""
        counts = [_count(shape) for shape in self.tensor_shapes.values()]
        return sum(counts) * DTYPES[self.precision].itemsize

    def card_bytes(self, batch: int) -> int:
        """An estimate of what one session needs on the card."""
        per_image = _PER_IMAGE * (self.weight_bytes / _OF_WEIGHTS) ** 0.5
        return self.weight_bytes + _OVERHEAD + int(per_image * batch)

    def write(self) -> None:
        """The random checkpoint, unless it is there."""
        if not self.is_written:
            from benchmarks.export.scale import write_checkpoint

            console.print(f"{self.name}: random weights of {self.title}, {self.checkpoint_bytes / 1e9:.1f} GB")
            write_checkpoint(self.tensor_shapes, DTYPES[self.precision], self.folder)
        original = checkpoint_path(self.spec.checkpoint, self.origin)
        for file in _CONFIGS:
            if self.spec.architecture is None and (original / file).is_file():
                shutil.copyfile(original / file, self.folder / file)

    def version(self, repository: Path) -> Path:
        """Its newest version folder."""
        return newest(repository / self.name) or repository / self.name / "1"

    def flops_per_image(self, repository: Path) -> int:
        """From its manifest."""
        return int(read_manifest(self.version(repository))["flops_per_image"])


@dataclass(frozen=True)
class Pair:
    """The pair and its folder.

    Attributes:
        models: in the ensemble's order.
        folder: of the spec, the repository and the measurements.
        dialect: of ONNX.
        link: leave the weights in the checkpoint's files.
    """

    models: Sequence[Model]
    folder: Path
    dialect: str
    link: bool

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def spec(self) -> Path:
        return self.folder / "ensembles" / "pair.toml"

    @property
    def is_built(self) -> bool:
        return is_repository(self.repository)

    def needed_bytes(self) -> int:
        """Of disk, for what is not there yet."""
        checkpoints = sum(model.checkpoint_bytes for model in self.models if not model.is_written)
        graphs = 0 if self.is_built or self.link else sum(model.weight_bytes for model in self.models)
        return checkpoints + graphs

    def make(self) -> None:
        """Write and export what is not there yet.

        Raises:
            ModelsError: the disk is too small, or the export failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = self.needed_bytes() + _MARGIN, shutil.disk_usage(self.folder).free
        if needed > free:
            linked = sum(model.checkpoint_bytes for model in self.models if not model.is_written) + _MARGIN
            advice = "" if self.link else f", or take --link-weights, which needs {linked / 1e9:.0f} GB"
            raise ModelsError(
                f"{self.folder} has {free / 1e9:.1f} GB of disk left, the weights and their export need "
                f"{needed / 1e9:.1f} GB; make room, name another --work{advice}"
            )
        for model in self.models:
            model.write()
        self._write_spec()
        command = [sys.executable, "-m", "clipchoir_export", "build", self.spec, "--repository", self.repository]
        command += ["--verify", "off", "--offline"]
        command += ["--link-weights"] if self.link else []
        done = subprocess.run([str(part) for part in command], check=False)
        if done.returncode:
            raise ModelsError("clipchoir-export could not build the pair; its message is above")

    def _write_spec(self) -> None:
        from benchmarks.export.scale import LABEL_SET

        labels = self.folder / "label_sets" / "few.toml"
        lines = ['name = "pair"', 'label_sets = ["few"]']
        for model in self.models:
            spec = model.spec
            lines += ["[[encoders]]", f'name = "{spec.name}"', f'source = "{spec.source}"']
            lines += [f'architecture = "{spec.architecture}"'] if spec.architecture else []
            lines += [f'checkpoint = "{model.folder.resolve()}"', f"sharpness = {spec.sharpness}"]
            lines += [f'precision = "{model.precision}"', f'dialect = "{self.dialect}"']
        for path, text in ((labels, LABEL_SET), (self.spec, "\n".join(lines) + "\n")):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def pair(shapes: Shapes, precisions: dict[str, Precision], dialect: str, link: bool, work: Path) -> Pair:
    """Names the pair; nothing is made yet.

    Args:
        shapes: whose.
        precisions: by source of the encoder.
        dialect: of ONNX, `portable` or `current`.
        link: leave the weights in the checkpoint's files.
        work: folder of everything.
    """
    origin = find_ensemble(_ENSEMBLES[shapes])
    models = []
    for spec in load_ensemble(origin).encoders:
        precision = precisions[spec.source]
        name = (spec.architecture or f"tiny-{spec.name}").lower()
        models.append(Model(spec, origin, precision, work / "checkpoints" / f"{name}-{precision}"))
    kind = "-".join([shapes.value, *(model.precision for model in models), dialect, *(["linked"] if link else [])])
    return Pair(models, work / kind, dialect, link)


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
