"""A new family of encoders is one new file: no other file names it."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from rich.progress import Progress
from safetensors.torch import save_file

from clipchoir_export import families
from clipchoir_export.build.encoder import BuildOptions
from clipchoir_export.build.repository import build_repository
from clipchoir_export.build.verification import sample_images
from clipchoir_export.errors import SpecError
from clipchoir_export.families.registry import describe_all, image_skeleton
from clipchoir_export.spec import load_ensemble
from tests.support import toy_family

SIZE, WIDTH = 96, 12


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one file, put beside the other families."""
    folder = tmp_path / "families"
    folder.mkdir()
    shutil.copyfile(toy_family.__file__, folder / "toy.py")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("clipchoir_export.families.toy", None)
    vars(families).pop("toy", None)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "toy.json").write_text(json.dumps({"image_size": SIZE, "width": WIDTH}))
    torch.manual_seed(0)
    towers = {"image.": toy_family.ToyImage(WIDTH), "text.": toy_family.ToyText(WIDTH)}
    weights = {prefix + name: each for prefix, tower in towers.items() for name, each in tower.state_dict().items()}
    save_file(weights, tmp_path / "checkpoint" / "model.safetensors")
    (tmp_path / "label_sets").mkdir()
    (tmp_path / "label_sets" / "pets.toml").write_text('classes = ["cat", "dog"]\ntemplates = ["{}", "a {}"]\n')
    path = tmp_path / "ensembles" / "toys.toml"
    path.parent.mkdir()
    path.write_text(
        'name = "toys"\nlabel_sets = ["pets"]\n[[encoders]]\nname = "tiny"\nsource = "toy"\n'
        'checkpoint = "../checkpoint"\n'
    )
    return path


def test_without_its_file_the_family_is_unknown(spec: Path) -> None:
    with pytest.raises(SpecError, match=r"encoders\.0\.source: .*there are eva_clip, open_clip \(got 'toy'\)"):
        load_ensemble(spec)


@pytest.mark.usefixtures("toy")
def test_with_its_file_it_is_described_built_and_verified(spec: Path, tmp_path: Path) -> None:
    assert families.family_names() == ["eva_clip", "open_clip", "toy"]
    ensemble, target = load_ensemble(spec), tmp_path / "repository"
    architecture = describe_all(ensemble, spec)["tiny"]
    assert (architecture.image_size, architecture.embedding_dim) == (SIZE, WIDTH)
    assert all(each.is_meta for each in image_skeleton(ensemble.encoders[0], spec)[0].parameters())
    with Progress(disable=True) as progress:
        new = build_repository(ensemble, spec, target, progress, BuildOptions(text_encoders=True))
    assert {"tiny/1", "tiny_text/1"} <= set(new)

    torch.manual_seed(0)  # the checkpoint's own weights, and the forward passes of its own modules
    image, text = toy_family.ToyImage(WIDTH), toy_family.ToyText(WIDTH)
    pixels = sample_images(3, SIZE)
    normalised = (torch.from_numpy(pixels) / 255 - 0.5) / 0.25  # (N, S, S, 3)
    tokens = open_clip.SimpleTokenizer()(["a cat", "dog"])
    with torch.inference_mode():
        expected = F.normalize(image(normalised.permute(0, 3, 1, 2)), dim=-1).numpy()
        expected_text = F.normalize(text(tokens), dim=-1).numpy()
    (embedding,) = run_model(target / "tiny" / "1", {"pixels": pixels})
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    (embedding,) = run_model(target / "tiny_text" / "1", {"tokens": tokens.numpy()})
    np.testing.assert_allclose(embedding, expected_text, atol=1e-5)


def run_model(version: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    outputs: list[np.ndarray] = onnxruntime.InferenceSession(version / "model.onnx").run(["embedding"], inputs)
    return outputs
