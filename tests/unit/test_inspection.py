"""What `clipchoir-export inspect` and `list` say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clipchoir_export import presets
from clipchoir_export.configs import render_configs
from clipchoir_export.families.registry import describe_all
from clipchoir_export.spec import load_ensemble, shipped_ensembles
from tests.conftest import ROOT, run
from tests.support import checkpoints


def test_a_whole_repository_has_no_problems(repository: Path) -> None:
    found = run("clipchoir-export", "inspect", repository, "--json")
    assert found.returncode == 0, found.stderr
    content = json.loads(found.stdout)
    assert content["problems"] == []
    models = {model["model"]: model for model in content["models"]}
    assert models.keys() == {path.parent.name for path in repository.glob("*/config.pbtxt")}
    files = [path for path in (repository / "metaclip" / "1").rglob("*") if path.is_file()]
    assert models["metaclip"]["bytes"] == sum(path.stat().st_size for path in files)
    assert content["label_sets"]["moods"] == ["a bright day", "night", "fog"]
    shown = run("clipchoir-export", "inspect", repository)
    assert "fp32 portable" in shown.stdout
    assert models["evaclip"]["manifest"]["fingerprint"][:12] in shown.stdout


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def another_checkpoint(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"fingerprint": "f" * 64}))


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        ("metaclip/1/model.onnx", Path.unlink, "metaclip/1: model.onnx is missing"),
        ("metaclip/1/model.onnx", truncate, "metaclip/1: model.onnx cannot be read"),
        ("metaclip/config.pbtxt", Path.unlink, "metaclip: has no config.pbtxt"),
        ("metaclip/1/manifest.json", Path.unlink, "metaclip: serves None, ensembling belongs to "),
        ("metaclip/1/manifest.json", truncate, "metaclip/1/manifest.json: cannot be read"),
        ("evaclip/1/manifest.json", another_checkpoint, "evaclip: serves ffffffffffff, ensembling belongs to "),
        ("ensembling/1/model.py", Path.unlink, "ensembling: has no model.py"),
        ("ensembling/1/manifest.json", Path.unlink, "ensembling: does not say which encoders it belongs to"),
        ("ensembling/1/label_sets/moods.safetensors", truncate, "moods.safetensors is not a label set file"),
    ],
)
def test_what_is_missing_damaged_or_of_another_build_is_named(
    repository: Path, tmp_path: Path, file: str, damage: Callable[[Path], None], problem: str
) -> None:
    copy = shutil.copytree(repository, tmp_path / "copy")
    damage(copy / file)
    found = run("clipchoir-export", "inspect", copy)
    assert found.returncode == 1
    assert problem in found.stderr
    assert "Traceback" not in found.stderr


@pytest.fixture
def linked_repository(tmp_path: Path) -> Path:
    checkpoints.write_eva_clip(tmp_path / "checkpoint")
    spec = tmp_path / "tiny.toml"
    spec.write_text(
        'name = "tiny"\nlabel_sets = ["scenes"]\n[[encoders]]\nname = "tiny"\nsource = "eva_clip"\n'
        'checkpoint = "checkpoint"\n'
    )
    target = tmp_path / "repository"
    built = run("clipchoir-export", "build", spec, "--repository", target, "--link-weights", "--verify", "off")
    assert built.returncode == 0, built.stderr
    return target


def test_external_data_that_is_missing_or_truncated_is_named(linked_repository: Path) -> None:
    data = linked_repository / "tiny" / "1" / "model.safetensors"
    whole = data.read_bytes()
    data.unlink()
    assert "tiny/1: model.safetensors is missing" in run("clipchoir-export", "inspect", linked_repository).stderr
    data.write_bytes(whole[:-100_000])
    assert "model.safetensors is truncated" in run("clipchoir-export", "inspect", linked_repository).stderr


def test_a_folder_of_something_else_is_no_repository(tmp_path: Path) -> None:
    found = run("clipchoir-export", "inspect", tmp_path)
    assert found.returncode == 1
    assert "is no clipchoir repository" in found.stderr


def test_the_docs_have_the_table_that_the_command_prints() -> None:
    printed = run("clipchoir-export", "list", "--markdown")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout in (ROOT / "docs" / "export.md").read_text()


def test_costs_are_those_of_the_published_models() -> None:
    rows = {row.encoder: row for row in presets.presets()}
    # Parameters as in the EVA-CLIP-18B paper and open_clip's model profile, which counts a multiply-add once.
    assert rows["EVA-CLIP-18B"].parameters == pytest.approx(17.5e9, rel=0.01)
    assert rows["EVA-CLIP-8B"].parameters == pytest.approx(7.5e9, rel=0.01)
    assert rows["ViT-B-16-quickgelu"].parameters == pytest.approx(86.19e6, rel=0.001)
    assert rows["ViT-B-16-quickgelu"].flops_per_image / 2 == pytest.approx(17.58e9, rel=0.01)
    assert rows["ViT-bigG-14-quickgelu"].weight_bytes == 2 * rows["ViT-bigG-14-quickgelu"].parameters


@pytest.mark.parametrize("path", shipped_ensembles(), ids=lambda path: path.stem)
def test_every_shipped_ensemble_renders_without_its_checkpoints_and_names_their_licence(path: Path) -> None:
    spec = load_ensemble(path)
    assert spec.name == path.stem
    assert render_configs(spec, describe_all(spec, path))
    assert all(encoder.licence for encoder in spec.encoders)
