"""Checkpoints into ONNX, against independent forward passes; and what is refused."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

import checkpoints
import reference
from clipchoir_export import encoders, onnx_files, repository
from clipchoir_export.errors import CheckpointError, RepositoryError, SpecError, VerificationError
from clipchoir_export.repository import build_repository
from clipchoir_export.spec import EncoderSpec, load_ensemble
from conftest import BIN

MODEL = "open_clip_model.safetensors"


def encoder_spec(folder: Path, source: str, sharpness: float = 1.7) -> EncoderSpec:
    return EncoderSpec(name="tiny", source=source, checkpoint=str(folder), sharpness=sharpness)  # type: ignore[arg-type]


def plain_way(folder: Path, source: str, pixels: NDArray[np.uint8], sharpness: float) -> NDArray[np.float32]:
    batch = torch.stack([reference.normalised(Image.fromarray(image), sharpness) for image in pixels])
    with torch.inference_mode():
        if source == "open_clip":
            model = open_clip.create_model(f"local-dir:{folder}").eval()
        else:
            model = reference.HuggingFaceEvaClip.load(folder)
        return F.normalize(model.encode_image(batch), dim=-1).numpy()


@pytest.mark.parametrize("kind", ["open_clip", "eva_clip post-norm", "eva_clip pre-norm"])
def test_onnx_equals_an_independent_forward_pass_at_every_batch_size(tmp_path: Path, kind: str) -> None:
    source, _, norm = kind.partition(" ")
    if source == "open_clip":
        folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    else:
        folder = checkpoints.write_eva_clip(tmp_path / "checkpoint", post_norm=norm == "post-norm")
    spec = encoder_spec(folder, source)
    architecture = encoders.describe(spec, tmp_path / "spec.toml")
    towers = encoders.load(spec, tmp_path / "spec.toml")
    path = tmp_path / "model.onnx"
    onnx_files.write_image_encoder(towers.image, architecture, spec.sharpness, path)
    onnx_files.verify_image_encoder(path, towers.image, architecture, spec.sharpness)

    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for batch in (1, 2, 5, 32):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), np.uint8)
        (actual,) = session.run(["embedding"], {"pixels": pixels})
        assert actual.shape == (batch, architecture.embedding_dim)
        np.testing.assert_allclose(actual, plain_way(folder, source, pixels, spec.sharpness), atol=2e-5)


def test_text_towers_equal_independent_forward_passes(tmp_path: Path) -> None:
    tokens = open_clip.SimpleTokenizer()(["a photo of a cat", "", "long " * 100])
    metaclip = checkpoints.write_open_clip(tmp_path / "open_clip")
    evaclip = checkpoints.write_eva_clip(tmp_path / "eva_clip")
    models = {
        "open_clip": open_clip.create_model(f"local-dir:{metaclip}").eval(),
        "eva_clip": reference.HuggingFaceEvaClip.load(evaclip),
    }
    for source, model in models.items():
        towers = encoders.load(encoder_spec(tmp_path / source, source), tmp_path / "spec.toml")
        with torch.inference_mode():
            torch.testing.assert_close(towers.text(tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_a_different_encoder_fails_the_verification(tmp_path: Path) -> None:
    specs = [encoder_spec(checkpoints.write_open_clip(tmp_path / str(seed), seed), "open_clip") for seed in (1, 2)]
    architecture = encoders.describe(specs[0], tmp_path / "spec.toml")
    first, second = (encoders.load(spec, tmp_path / "spec.toml").image for spec in specs)
    onnx_files.write_image_encoder(first, architecture, 1.7, tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="differs from its PyTorch original"):
        onnx_files.verify_image_encoder(tmp_path / "model.onnx", second, architecture, 1.7)
    with pytest.raises(VerificationError):
        onnx_files.verify_image_encoder(tmp_path / "model.onnx", first, architecture, 2.3)


@pytest.fixture
def tiny_spec(tmp_path: Path) -> Path:
    checkpoints.write_open_clip(tmp_path / "checkpoint")
    path = tmp_path / "tiny.toml"
    path.write_text(
        'name = "tiny"\nlabel_sets = ["scenes"]\n[[encoders]]\nname = "tiny"\nsource = "open_clip"\n'
        'checkpoint = "checkpoint"\nsharpness = 2.0\n'
    )
    return path


def build(spec_path: Path, target: Path) -> None:
    with Progress(disable=True) as progress:
        build_repository(load_ensemble(spec_path), spec_path, target, progress)


def test_a_failed_build_changes_nothing(tiny_spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_spec.parent / "repository"
    build(tiny_spec, target)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    original = onnx_files.write_image_encoder
    # An exporter that gets the sharpness wrong.
    monkeypatch.setattr(
        repository, "write_image_encoder", lambda tower, arch, _, path: original(tower, arch, 1.0, path)
    )
    with pytest.raises(VerificationError):
        build(tiny_spec, target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    assert sorted(path.name for path in tiny_spec.parent.iterdir()) == ["checkpoint", "repository", "tiny.toml"]


def test_when_the_new_repository_cannot_be_put_in_place_the_old_one_stays(
    tiny_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_spec.parent / "repository"
    build(tiny_spec, target)
    rename = Path.rename

    def full_disk(path: Path, to: Path) -> Path:
        if to == target and path.parent.name.startswith(".repository.") and path.name == "repository":
            raise OSError(28, "No space left on device", str(to))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(RepositoryError, match="No space left on device"):
        build(tiny_spec, target)
    assert (target / "zero_shot" / "config.pbtxt").is_file()


def test_the_manifest_says_what_was_built(tiny_spec: Path) -> None:
    target = tiny_spec.parent / "repository"
    build(tiny_spec, target)
    manifest = json.loads((target / "tiny" / "1" / "manifest.json").read_text())
    assert manifest["preprocessing"]["sharpness"] == 2.0
    assert manifest["preprocessing"]["image_size"] == 224
    assert manifest["verification"]["batches"] == [1, 2, 5, 32]
    assert manifest["verification"]["max_difference"] < manifest["verification"]["tolerance"]
    assert manifest["fingerprint"] in (target / "ensembling" / "config.pbtxt").read_text()
    assert "torch" in manifest["tools"]


def test_a_folder_that_is_no_repository_is_left_alone(tiny_spec: Path) -> None:
    target = tiny_spec.parent / "photos"
    target.mkdir()
    (target / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(RepositoryError, match="holds something else than a clipchoir repository"):
        build(tiny_spec, target)
    assert (target / "holiday.jpg").read_bytes() == b"precious"


def test_the_fingerprint_changes_with_the_checkpoint_alone(tmp_path: Path) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    specs = [encoder_spec(folder, "open_clip", sharpness) for sharpness in (1.0, 2.0)]
    one, other = (encoders.fingerprint(spec, tmp_path / "spec.toml") for spec in specs)
    assert one == other
    checkpoints.write_open_clip(folder, seed=5)
    assert encoders.fingerprint(specs[0], tmp_path / "spec.toml") != one


def change_open_clip(folder: Path, change: str) -> None:
    tensors = load_file(folder / MODEL)
    if change == "missing":
        del tensors["visual.proj"]
    elif change == "unexpected":
        tensors["visual.surprise"] = torch.zeros(2)
    elif change == "shape":
        tensors["visual.proj"] = torch.zeros(32, 25)
    save_file(tensors, folder / MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 missing keys: visual.proj"),
        ("unexpected", "1 unexpected keys: visual.surprise"),
        ("shape", r"visual.proj has shape \(32, 25\), the architecture has \(32, 24\)"),
    ],
)
def test_keys_and_shapes_must_match_in_an_open_clip_checkpoint(tmp_path: Path, change: str, message: str) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    change_open_clip(folder, change)
    with pytest.raises(CheckpointError, match=message):
        encoders.load(encoder_spec(folder, "open_clip"), tmp_path / "spec.toml")


def test_keys_must_match_in_an_eva_clip_checkpoint(tmp_path: Path) -> None:
    folder = checkpoints.write_eva_clip(tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing keys: visual_projection.weight; 1 unexpected keys: extra.weight"
    ):
        encoders.load(encoder_spec(folder, "eva_clip"), tmp_path / "spec.toml")


@pytest.mark.parametrize(("damage", "message"), [("truncated", MODEL), ("absent", "holds no weights")])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str, message: str) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    path = folder / MODEL
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=message):
        encoders.load(encoder_spec(folder, "open_clip"), tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("architecture", "checkpoint", "message"),
    [
        ("ViT-nothing", "metaclip_fullcc", 'open_clip has no architecture "ViT-nothing"'),
        ("ViT-bigG-14-quickgelu", "metaclip_2_5b", "it has: metaclip_fullcc"),
        ("ViT-L-14-quickgelu", "laion2b_s32b_b82k", 'open_clip has no checkpoint "laion2b_s32b_b82k"'),
        ("ViT-B-32", "openai", "the architecture is ViT-B-32-quickgelu"),
    ],
)
def test_a_wrong_open_clip_name_tag_or_activation_is_an_error(
    tmp_path: Path, architecture: str, checkpoint: str, message: str
) -> None:
    spec = EncoderSpec(name="x", source="open_clip", architecture=architecture, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=message):
        encoders.describe(spec, tmp_path / "spec.toml")


def test_a_precision_that_cannot_be_built_is_refused_before_any_work(tiny_spec: Path) -> None:
    tiny_spec.write_text(tiny_spec.read_text() + 'precision = "fp16"\n')
    with pytest.raises(SpecError, match=r"encoders\.0\.precision: fp16 cannot be built"):
        build(tiny_spec, tiny_spec.parent / "repository")


def test_ctrl_c_leaves_nothing_behind(tiny_spec: Path) -> None:
    command: list[str | Path] = [
        f"{BIN}/clipchoir-export",
        "build",
        tiny_spec,
        "--repository",
        tiny_spec.parent / "repository",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tiny_spec.parent.glob(".repository.*")):  # it has begun to write
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert sorted(path.name for path in tiny_spec.parent.iterdir()) == ["checkpoint", "tiny.toml"]
