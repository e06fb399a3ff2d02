"""Export checkpoints of full size with random weights, and report time, memory and agreement.

    python -m benchmarks.export.scale --shape eva-clip-8b --precision fp16

Writes a random checkpoint shard by shard, times a plain copy of its files, then runs `clipchoir-export build` on it and
watches that process: how long each step takes and how much memory it holds. Nothing is taken from the checkpoint of an
earlier run but its files. Results go to benchmarks/results/export_scale.json and .md.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import open_clip
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from clipchoir_export.families.eva_clip import KNOWN_CONFIGS, build_image_tower, build_text_tower, to_hugging_face

RESULTS = Path(__file__).parents[1] / "results"
SHARD = 1_500_000_000  # bytes
INTERVAL = 0.02  # seconds between two looks at the process
NAME = "giant"  # of the encoder
LABEL_SET = 'classes = ["cat", "dog", "sea", "street"]\ntemplates = ["a photo of a {}.", "a picture of the {}."]\n'
console = Console(highlight=False)


class Shape(str, Enum):
    """Whose sizes the checkpoint has."""

    EVA_CLIP_8B = "eva-clip-8b"
    EVA_CLIP_18B = "eva-clip-18b"
    METACLIP_BIGG = "metaclip-bigg"


class Type(str, Enum):
    """How numbers are stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


SPECS = {
    Shape.EVA_CLIP_8B: ("eva_clip", "EVA-CLIP-8B"),
    Shape.EVA_CLIP_18B: ("eva_clip", "EVA-CLIP-18B"),
    Shape.METACLIP_BIGG: ("open_clip", "ViT-bigG-14-quickgelu"),
}
DTYPES = {Type.FP32: torch.float32, Type.FP16: torch.float16, Type.BF16: torch.bfloat16}


@dataclass
class Step:
    """One step of the build, as seen from outside."""

    name: str
    seconds: float = 0
    peak_rss: int = 0  # bytes, pages of mapped files among them
    peak_private: int = 0  # bytes that are the process's own


@dataclass(frozen=True)
class Result:
    """One run."""

    shape: str
    checkpoint: str
    precision: str
    dialect: str
    linked: bool
    checkpoint_bytes: int
    written_bytes: int
    copy_seconds: float | None
    steps: list[Step]
    verification: Mapping[str, object] | None
    machine: str
    command: str

    @property
    def key(self) -> tuple[object, ...]:
        return self.shape, self.checkpoint, self.precision, self.dialect, self.linked


def main(
    shape: Annotated[Shape, typer.Option(help="Whose sizes the checkpoint has.")] = Shape.EVA_CLIP_8B,
    precision: Annotated[Type, typer.Option(help="Of the exported graph.")] = Type.FP16,
    checkpoint: Annotated[Type, typer.Option(help="Of the checkpoint's weights.")] = Type.FP16,
    dialect: Annotated[str, typer.Option(help="`portable` or `current`.")] = "portable",
    link_weights: Annotated[bool, typer.Option("--link-weights", help="Build with --link-weights.")] = False,
    verify: Annotated[str, typer.Option(help="As for clipchoir-export build.")] = "sample",
    copy: Annotated[bool, typer.Option(help="Time a plain copy first.")] = True,
    work: Annotated[Path, typer.Option(help="Where the checkpoint is kept; needs twice its size.")] = Path(
        "build/export_scale"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoint for another run.")] = False,
) -> None:
    """Export a checkpoint of full size with random weights; print time, peak memory and GB."""
    folder = work / f"{shape.value}-{checkpoint.value}"
    try:
        if not (folder / "done").exists():
            write_checkpoint(tensor_shapes(*SPECS[shape]), DTYPES[checkpoint], folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        copy_seconds = time_copy(folder) if copy else None
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            spec = write_spec(Path(scratch), shape, precision, dialect, folder)
            repository = Path(scratch) / "out" / "repository"
            steps = watch_build(spec, repository, verify, link_weights)
            manifest = json.loads((repository / NAME / "1" / "manifest.json").read_text())
        options = "".join(
            f" --{name} {value}"
            for name, value, default in (
                ("checkpoint", checkpoint.value, "fp16"),
                ("dialect", dialect, "portable"),
                ("verify", verify, "sample"),
            )
            if value != default
        )
        flag = " --link-weights" if link_weights else ""
        result = Result(
            shape.value,
            checkpoint.value,
            precision.value,
            dialect,
            link_weights,
            size,
            manifest["weights"]["bytes_written"],
            copy_seconds,
            steps,
            manifest["verification"],
            machine(),
            f"python -m benchmarks.export.scale --shape {shape.value} --precision {precision.value}{options}{flag}",
        )
        record(result)
        report([result])
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_checkpoint(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, folder: Path) -> None:
    """Random weights in shards, each tensor scaled so that activations keep their size."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = torch.randn(1 << 25, generator=torch.manual_seed(0))
    shards = list(split(shapes, dtype.itemsize))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(track(shards, description="writing the checkpoint", console=console), start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: random_tensor(name, shapes[name], random).to(dtype) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "done").touch()


def tensor_shapes(source: str, architecture: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published layout."""
    with torch.device("meta"):
        if source == "eva_clip":
            config = KNOWN_CONFIGS[architecture]
            towers = build_image_tower(config).state_dict(), build_text_tower(config).state_dict()
            tensors = to_hugging_face(*towers, torch.empty(()), config)
        else:
            tensors = open_clip.CLIP(**open_clip.get_model_config(architecture)).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def split(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    """Names of one shard after the other."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        size += torch.Size(shape).numel() * itemsize
        names.append(name)
        if size > SHARD:
            yield names
            names, size = [], 0
    if names:
        yield names


def random_tensor(name: str, shape: tuple[int, ...], random: Tensor) -> Tensor:
    """Different for every name; norms near 1, matrices scaled by their inputs."""
    count = torch.Size(shape).numel()
    values = part_of(random, name, count) if count <= len(random) else random.repeat(count // len(random) + 1)[:count]
    if len(shape) < 2:
        return (1 + 0.1 * values if "norm" in name or "ln_" in name else 0.02 * values).reshape(shape)
    if count > len(random):
        values = values.reshape(shape) * (1 + 0.5 * part_of(random, name, shape[0]).reshape(-1, 1))
    return values.reshape(shape) * (torch.Size(shape[1:]).numel() ** -0.5)


def part_of(random: Tensor, name: str, count: int) -> Tensor:
    """So many of the numbers, from a place that depends on the name."""
    start = hash_of(name) % (len(random) - count + 1)
    return random[start : start + count]


def hash_of(name: str) -> int:
    """The same in every process."""
    return zlib.crc32(name.encode())


def time_copy(folder: Path) -> float:
    """Seconds that a plain copy of the weight files takes."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        console.print("copying the checkpoint, for comparison")
        drop_caches()
        start = time.perf_counter()
        for path in sorted(folder.glob("*.safetensors")):
            shutil.copyfile(path, Path(scratch) / path.name)
        return time.perf_counter() - start


def drop_caches() -> None:
    """So that neither the copy nor the build finds the checkpoint in memory."""
    subprocess.run(["sync"], check=True)  # noqa: S607
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        console.print("cannot drop the page cache (needs root): both may read from memory", style="yellow")


def write_spec(folder: Path, shape: Shape, precision: Type, dialect: str, checkpoint: Path) -> Path:
    """A spec with this one encoder."""
    source, architecture = SPECS[shape]
    (folder / "label_sets").mkdir()
    (folder / "label_sets" / "few.toml").write_text(LABEL_SET)
    spec = folder / "ensembles" / "giant.toml"
    spec.parent.mkdir()
    spec.write_text(
        f'name = "giant"\nlabel_sets = ["few"]\n[[encoders]]\nname = "{NAME}"\nsource = "{source}"\n'
        f'architecture = "{architecture}"\ncheckpoint = "{checkpoint.resolve()}"\nsharpness = 2.0\n'
        f'precision = "{precision.value}"\ndialect = "{dialect}"\n'
    )
    return spec


def watch_build(spec: Path, repository: Path, verify: str, link: bool) -> list[Step]:
    """Run the real command. Its staging folder shows which step is done."""
    staging = repository.parent / f".{repository.name}.building"
    marks = {"write": NAME, "prompts": f"{NAME}.prompts", "fingerprint": f"{NAME}.fingerprint"}
    if verify != "off":
        marks["verify"] = f"{NAME}.verified"
    drop_caches()
    command = [Path(sys.executable).with_name("clipchoir-export"), "build", spec, "--repository", repository]
    command += ["--verify", verify, *(["--link-weights"] if link else [])]
    steps: list[Step] = []
    left = dict(marks)
    start = time.perf_counter()
    with subprocess.Popen([str(part) for part in command]) as process:
        step = Step(next(iter(left), "publish"))
        while process.poll() is None:
            look(process.pid, step)
            if left and (staging / left[step.name] / ".done").exists():
                step.seconds = time.perf_counter() - start
                start += step.seconds
                steps.append(step)
                del left[step.name]
                step = Step(next(iter(left), "publish"))
            time.sleep(INTERVAL)
    if process.returncode:
        raise typer.Exit(process.returncode)
    step.seconds = time.perf_counter() - start
    return [*steps, step]


def look(pid: int, step: Step) -> None:
    """Note what the process holds now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    fields = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" in fields:
        step.peak_rss = max(step.peak_rss, int(fields["VmRSS"].split()[0]) * 1024)
        step.peak_private = max(step.peak_private, int(fields["RssAnon"].split()[0]) * 1024)


def machine() -> str:
    """What this ran on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB, {platform.machine()}"


def record(result: Result) -> None:
    """Put the result in the place of the last one of its kind, and write the table anew."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "export_scale.json"
    known = [from_json(each) for each in json.loads(path.read_text())] if path.exists() else []
    results = sorted([each for each in known if each.key != result.key] + [result], key=lambda each: str(each.key))
    path.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
    (RESULTS / "export_scale.md").write_text(markdown(results))


def from_json(content: dict) -> Result:
    """The inverse of `asdict`."""
    return Result(**{**content, "steps": [Step(**step) for step in content["steps"]]})


def report(results: list[Result]) -> None:
    """For a person."""
    for result in results:
        console.print(f"\n[bold]{result.shape} {result.checkpoint} -> {result.precision}[/] ({result.machine})")
        copied = f", copied in {result.copy_seconds:.0f} s" if result.copy_seconds else ""
        console.print(f"checkpoint {result.checkpoint_bytes / 1e9:.2f} GB{copied}")
        console.print(f"written    {result.written_bytes / 1e9:.2f} GB")
        for step in result.steps:
            console.print(
                f"{step.name:12} {step.seconds:7.1f} s   peak RSS {step.peak_rss / 1e9:5.2f} GB"
                f"   of it private {step.peak_private / 1e9:5.2f} GB"
            )
        if result.copy_seconds:
            console.print(f"writing took {result.steps[0].seconds / result.copy_seconds:.2f} of the copy's time")
        if result.verification:
            console.print(f"smallest cosine {result.verification['min_cosine']:.7f}")


def markdown(results: list[Result]) -> str:
    """A table of all runs."""
    lines = [
        "# Exporting checkpoints of full size",
        "",
        "Random weights in the published layouts; `clipchoir-export build`, watched from outside. *Write* traces the",
        "graph and writes all weights of the image encoder; *copy* is a plain copy of the checkpoint's files in the",
        "same run, from a cold page cache as well. *Peak RSS* while writing; *private*: the most of the whole build,",
        "verification included, without the pages of mapped files, which ONNX Runtime reads the weights through and",
        "the system takes back when it needs them.",
        "",
        "| checkpoint | graph | written | write | / copy | peak RSS | private | verify | min cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        steps = {step.name: step for step in result.steps}
        ratio = f"{steps['write'].seconds / result.copy_seconds:.2f}" if result.copy_seconds else ""
        private = max(step.peak_private for step in result.steps)
        verify = f"{steps['verify'].seconds:.0f} s" if "verify" in steps else ""
        cosine = f"{result.verification['min_cosine']:.6f}" if result.verification else ""
        lines.append(
            f"| {result.shape}, {result.checkpoint}, {result.checkpoint_bytes / 1e9:.1f} GB "
            f"| {result.precision} {result.dialect}{', linked' if result.linked else ''} "
            f"| {result.written_bytes / 1e9:.2f} GB | {steps['write'].seconds:.0f} s | {ratio} "
            f"| {steps['write'].peak_rss / 1e9:.2f} GB | {private / 1e9:.2f} GB | {verify} | {cosine} |"
        )
    lines += ["", f"Machine: {results[0].machine}. Commands:", ""]
    lines += [f"    {result.command}" for result in results]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
