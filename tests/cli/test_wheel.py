"""The wheel holds everything that building and serving the demo needs."""

import fnmatch
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, encoded, noise


def unwanted(folder: Path, names: list[str]) -> set[str]:
    """What a build of the wheel must not see: what others have built, and what is large."""
    patterns = [".*", "*.egg-info", "samples", *(["build"] if folder == ROOT else [])]
    return {name for name in names for pattern in patterns if fnmatch.fnmatch(name, pattern)}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; the wheel's dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build in the tree would take leftovers of earlier builds into the wheel.
    tree = shutil.copytree(
        ROOT, folder / "tree", symlinks=True, ignore=lambda folder, names: unwanted(Path(folder), names)
    )
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        folder,
        tree,
    ]
    subprocess.run(build, check=True, timeout=240)
    (wheel,) = folder.glob("clipchoir-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        wheel,
    ]
    subprocess.run(install, check=True, timeout=240)
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "venv" / "bin"


def test_an_installed_wheel_builds_and_serves_the_demo(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(encoded(noise(0)))
    script = """
import sys
from clipchoir import Client
from clipchoir_server.triton import Address, serving
import clipchoir_export.spec
from pathlib import Path
assert "site-packages" in clipchoir_export.spec.__file__, clipchoir_export.spec.__file__
with serving(Path("build/demo"), Address.choose()) as server, Client(server.address.grpc) as client:
    (result,) = client.classify(["image.png"])
    assert not result.error, result.error
    print(result.classes)
"""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for command in (["clipchoir-export", "build", "demo"], ["python", "-c", script]):
        result = subprocess.run(
            [environment / command[0], *command[1:]],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert "('Buildings', 'Forests', 'Glacier', 'Mountains', 'Sea', 'Street')" in result.stdout
