"""One repository and one real tritonserver for the whole run."""

import io
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from natsort import natsorted
from PIL import Image

from clipchoir_server.triton import Address, Triton, serving

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
# The tests may be a background job, which ignores Ctrl-C. `preexec_fn` would fork beside gRPC's threads.
HEEDING_CTRL_C = ("/usr/bin/env", "--default-signal=INT")
SAMPLES = natsorted((ROOT / "demo" / "samples").rglob("*.jpg"))
MOODS = """
classes = ["a bright day", "night", "fog"]
templates = ["{}", "a photo of {}, or is it {}?"]
[extra]
night = ["stars above", "street lights"]
"""


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands and capture what it prints."""
    return subprocess.run(
        [BIN / command[0], *command[1:]], capture_output=True, text=True, timeout=240, check=False, **options
    )


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's spec with a second label set, whose classes have unequal numbers of prompts."""
    folder = tmp_path_factory.mktemp("spec")
    (folder / "ensembles").mkdir()
    (folder / "label_sets").mkdir()
    (folder / "label_sets" / "moods.toml").write_text(MOODS)
    demo = (ROOT / "export" / "ensembles" / "demo.toml").read_text()
    path = folder / "ensembles" / "demo.toml"
    path.write_text(demo.replace('label_sets = ["scenes"]', 'label_sets = ["scenes", "moods"]'))
    return path


@pytest.fixture(scope="session")
def repository(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pair's repository, built by the real command."""
    target = tmp_path_factory.mktemp("build") / "demo"
    built = run("clipchoir-export", "build", spec, "--repository", target, "--text-encoders")
    assert built.returncode == 0, built.stderr
    return target


@pytest.fixture(scope="session")
def label_set_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's server keeps the label sets of requests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server(repository: Path, label_set_cache: Path) -> Iterator[Triton]:
    """A real tritonserver on free ports."""
    os.environ["CLIPCHOIR_CACHE"] = str(label_set_cache)  # of every server that the tests start
    with serving(repository, Address.choose()) as triton:
        yield triton


@pytest.fixture(scope="session")
def triton(server: Triton) -> Iterator[grpcclient.InferenceServerClient]:
    """Plain tritonclient, as a user of another language would have."""
    with grpcclient.InferenceServerClient(server.address.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def commands_find_the_server(server: Triton) -> Iterator[None]:
    """`clipchoir` goes there, where it is told nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPCHOIR_URL", server.address.grpc)
        yield


def infer(
    client: grpcclient.InferenceServerClient,
    rows: list[bytes],
    outputs: list[str],
    **parameters: Any,
) -> dict[str, np.ndarray]:
    """One request to `zero_shot`."""
    image = grpcclient.InferInput("image", [len(rows), 1], "BYTES")
    image.set_data_from_numpy(np.array([[row] for row in rows], np.object_))
    requested = [grpcclient.InferRequestedOutput(name) for name in outputs]
    answer = client.infer("zero_shot", [image], outputs=requested, parameters=parameters or None, client_timeout=60)
    return {name: answer.as_numpy(name) for name in outputs}


def metrics(address: str, families: str) -> dict[str, float]:
    """What a server's `/metrics` (host:port) says of the families whose names begin with this pattern."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(rf"^((?:{families}).*) (\S+)$", text, re.MULTILINE)}


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def noise(seed: int, size: tuple[int, int] = (320, 200)) -> Image.Image:
    """A colourful picture, never the same for two seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
