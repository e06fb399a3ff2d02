"""The repository's source in git, and the configs of other ensembles."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from clipchoir_export.build.steps import write_source
from clipchoir_export.configs import render_configs
from clipchoir_export.families.registry import describe_all
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import find_ensemble, load_ensemble
from tests.conftest import ROOT

SOURCE = ROOT / "model_repository"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_repository_in_git_is_what_the_real_pairs_spec_renders(tmp_path: Path) -> None:
    path = find_ensemble("scenes")
    spec = load_ensemble(path)
    write_source(spec, describe_all(spec, path), tmp_path)
    assert files(tmp_path) == files(SOURCE)


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/config.pbtxt")), ids=lambda path: path.parent.name)
def test_configs_are_tritons_and_name_no_instance_kind(path: Path) -> None:
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert config.name == path.parent.name
    assert {group.kind for group in config.instance_group} <= {model_config_pb2.ModelInstanceGroup.KIND_AUTO}
    assert (path.parent / "1").is_dir()
    if config.name != "label_sets":  # which has nothing to do with images
        assert config.max_batch_size == 64
        assert config.HasField("dynamic_batching") != config.HasField("ensemble_scheduling")


def test_no_output_of_the_ensemble_feeds_a_step() -> None:
    text = (SOURCE / "zero_shot" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    consumed = {tensor for step in config.ensemble_scheduling.step for tensor in step.input_map.values()}
    assert consumed.isdisjoint(output.name for output in config.output)
    for output in config.output:
        assert output.name in config.ensemble_scheduling.step[-1].output_map.values()


def test_encoders_of_different_sizes_each_get_their_pixels() -> None:
    spec = load_ensemble(find_ensemble("scenes"))
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    architectures = {
        "metaclip": Architecture(224, 1280, mean, std),
        "evaclip": Architecture(448, 1280, mean, std),
    }
    configs = render_configs(spec, architectures)
    preprocess = text_format.Parse(configs[Path("preprocess/config.pbtxt")], model_config_pb2.ModelConfig())
    assert {output.name: list(output.dims) for output in preprocess.output} == {
        "pixels_224": [224, 224, 3],
        "pixels_448": [448, 448, 3],
        "status": [1],
    }
    zero_shot = text_format.Parse(configs[Path("zero_shot/config.pbtxt")], model_config_pb2.ModelConfig())
    steps = {step.model_name: dict(step.input_map) for step in zero_shot.ensemble_scheduling.step}
    assert steps["metaclip"] == {"pixels": "pixels_224"}
    assert steps["evaclip"] == {"pixels": "pixels_448"}
