"""The repositories that the benchmarks serve, built by the real command."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from clipchoir_server.triton import ServerError
from clipchoir_steps.atomic import write_bytes

ROOT = Path(__file__).parents[2]
DEMO, BASE = ROOT / "build" / "demo", ROOT / "build" / "base-random"
ARCHITECTURES = {"metaclip": "ViT-B-16-quickgelu", "evaclip": "EVA02-B-16"}  # of the ensemble `base`
console = Console(highlight=False)


def build_base(repository: Path = BASE, precision: str = "fp32") -> None:
    """The repository of the ViT-B/16 shapes with random weights, always the same; it is brought up to date.

    Raises:
        ServerError: it cannot be built.
    """
    checkpoints = BASE.with_name(f"{BASE.name}-checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    spec = f'name = "{repository.name}"\nlabel_sets = ["scenes"]\n'
    for name, architecture in ARCHITECTURES.items():
        path = checkpoints / f"{architecture}.safetensors"
        if not path.is_file():
            write_random_checkpoint(architecture, path)
        spec += (
            f'[[encoders]]\nname = "{name}"\nsource = "open_clip"\narchitecture = "{architecture}"\n'
            f'checkpoint = "{path.name}"\nprecision = "{precision}"\n'
        )
    path = checkpoints / f"{repository.name}.toml"
    path.write_text(spec)
    build(path, repository)


def build(spec: Path, repository: Path) -> None:
    """A repository of a spec, by the real command; one that is there already is brought up to date.

    Raises:
        ServerError: it cannot be built.
    """
    console.print(f"building {repository.relative_to(ROOT)}")
    export = Path(sys.executable).with_name("clipchoir-export")
    command = [export, "build", spec, "--repository", repository, "--verify", "off"]
    built = subprocess.run([str(part) for part in command], check=False)
    if built.returncode:
        raise ServerError(f"clipchoir-export could not build {repository.relative_to(ROOT)}; see its message above")


def write_random_checkpoint(architecture: str, path: Path) -> None:
    """As open_clip initialises it."""
    import open_clip
    import torch
    from safetensors.torch import save

    console.print(f"writing random weights of {architecture}")
    torch.manual_seed(0)
    tensors = {name: each.contiguous() for name, each in open_clip.create_model(architecture).state_dict().items()}
    write_bytes(path, save(tensors))
