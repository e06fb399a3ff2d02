"""An environment of its own for each peer, made once: build/peers/NAME."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[2] / "build" / "peers"
# What decodes and computes has the same version everywhere, so that servers are compared and not libraries.
SHARED = ("onnxruntime", "pillow", "numpy", "safetensors")
PINNED = {
    "fastapi": ("fastapi==0.163.2", "uvicorn[standard]==0.54.0"),
    "litserve": ("litserve==0.2.19", "uvicorn[standard]==0.54.0"),
    "bentoml": ("bentoml==1.4.40",),
}


class EnvironmentFailedError(Exception):
    """A peer cannot be installed."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing or has other versions.

    Raises:
        EnvironmentFailedError: with what pip says.
    """
    target = ENVIRONMENTS / name
    wanted = "\n".join([*PINNED[name], *(f"{each}=={importlib.metadata.version(each)}" for each in SHARED)]) + "\n"
    stamp = target / "requirements.txt"
    if not stamp.is_file() or stamp.read_text() != wanted:
        _make(target, wanted)
    return target / "bin" / "python"


def versions_of(python: Path) -> dict[str, str]:
    """Every package of an environment."""
    command = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {each["name"]: each["version"] for each in json.loads(listed)}


def _make(target: Path, wanted: str) -> None:
    """Beside it, then renamed. Its scripts keep the old path in their first line: use `python -m`."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    print(f"installing {target.name}: {', '.join(wanted.split())}", file=sys.stderr)
    try:
        venv.create(part, with_pip=True, symlinks=True)
        (part / "requirements.txt").write_text(wanted)
        install = [str(part / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*install, "-r", str(part / "requirements.txt")], capture_output=True, text=True)
        if done.returncode:
            raise EnvironmentFailedError(f"{target.name} cannot be installed:\n{done.stderr.strip()[-2000:]}")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
