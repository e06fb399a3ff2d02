"""`clipchoir-export tensorrt`, and the scripts that it writes, with a stand-in for TensorRT's own program."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from rich.progress import Progress
from tritonclient.grpc import model_config_pb2

from clipchoir_export.build.encoder import BuildOptions
from clipchoir_export.build.repository import build_repository
from clipchoir_export.errors import RepositoryError
from clipchoir_export.spec import load_ensemble
from clipchoir_export.tensorrt import engine_check
from clipchoir_export.tensorrt.engines import write_engine_builds
from clipchoir_server import triton
from clipchoir_server.triton import Address, ServerError, serving
from tests.conftest import encoded, infer, noise, run
from tests.support import checkpoints, fake_trtexec

SPEC = """
name = "pair"
label_sets = ["pets"]
[[encoders]]
name = "first"
source = "open_clip"
checkpoint = "../first"
sharpness = 2.0
precision = "fp16"
[[encoders]]
name = "second"
source = "eva_clip"
checkpoint = "../second"
dialect = "current"
"""
PETS = 'classes = ["cat", "dog", "bird"]\ntemplates = ["{}", "a {}", "a photo of a {}", "A {}"]\n'


def build(folder: Path, options: BuildOptions) -> Path:
    """A repository of two tiny encoders and their text towers."""
    checkpoints.write_open_clip(folder / "first")
    checkpoints.write_eva_clip(folder / "second")
    for name, content in (("ensembles/pair.toml", SPEC), ("label_sets/pets.toml", PETS)):
        (folder / name).parent.mkdir()
        (folder / name).write_text(content)
    spec = folder / "ensembles" / "pair.toml"
    with Progress(disable=True) as progress:
        build_repository(load_ensemble(spec), spec, folder / "repository", progress, options)
    return folder / "repository"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pair"), BuildOptions(text_encoders=True))


@pytest.fixture(scope="module")
def prepared(built: Path) -> Path:
    """A repository that the command has been run on."""
    folder = Path(shutil.copytree(built, built.parent / "prepared"))
    write_engine_builds(folder)
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture(scope="module")
def trtexec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "trtexec"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_trtexec.__file__} "$@"\n')
    path.chmod(0o755)
    return path


def build_engine(model: Path, trtexec: Path, wrong: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRTEXEC": str(trtexec), "FAKE_TRTEXEC": wrong}
    script = model / "tensorrt" / "build.sh"
    return subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60, check=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("model", ["first", "first_text", "second", "second_text"])
def test_an_engine_that_agrees_with_the_checkpoint_is_put_in_place(copy: Path, trtexec: Path, model: str) -> None:
    before = names(copy / model / "1")
    done = build_engine(copy / model, trtexec)
    assert done.returncode == 0, done.stdout + done.stderr
    assert names(copy / model / "1") == sorted([*before, "model.plan"])
    cosine = re.search(rf"{model}: lowest cosine (\S+) on 8 rows; 0 nearer", done.stdout)
    assert cosine, done.stdout
    assert float(cosine[1]) > 0.9999
    options = json.loads((copy / model / "1" / "model.plan").read_text())
    tensor, shape = ("tokens", "77") if model.endswith("_text") else ("pixels", "224x224x3")
    for which, batch in (("min", 1), ("opt", 32), ("max", 64)):
        assert options[f"--{which}Shapes"] == f"{tensor}:{batch}x{shape}"
    assert {"--stronglyTyped", "--noTF32"} <= options.keys()
    assert options.get("--decomposableAttentions") == ("*" if model.startswith("second") else None)


def test_a_trtexec_that_has_no_option_for_strong_typing_is_not_given_it(copy: Path, trtexec: Path) -> None:
    assert build_engine(copy / "first", trtexec, "version 11").returncode == 0
    assert "--stronglyTyped" not in json.loads((copy / "first" / "1" / "model.plan").read_text())


@pytest.mark.parametrize(
    ("model", "wrong", "message"),
    [
        ("first", "no engine", "trtexec could not build the engine"),
        ("first", "rows mixed up", r"cosine .*, needed is 0\.999\n.*precision bf16 or fp32 .* may help"),
        ("first", "no numbers", "its embeddings are not all finite numbers"),
        ("first", "not normalised", "its embeddings have lengths from 3 to 3 instead of 1"),
        ("first", "a row missing", "its embeddings are 7 x 24, the checkpoint's are 8 x 24"),
        ("second_text", "rows mixed up", r"cosine .*, needed is 0\.9999\n.*was not put in place$"),
    ],
)
def test_an_engine_that_fails_or_differs_leaves_nothing_and_an_older_one_in_place(
    copy: Path, trtexec: Path, model: str, wrong: str, message: str
) -> None:
    plan = copy / model / "1" / "model.plan"
    plan.write_text("of an older TensorRT")
    before = names(plan.parent)
    done = build_engine(copy / model, trtexec, wrong)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert names(plan.parent) == before
    assert plan.read_text() == "of an older TensorRT"


@pytest.mark.parametrize(("apart", "mistaken"), [(20, True), (15, False)])
def test_an_embedding_nearer_to_another_rows_original_counts_where_the_bar_tells_the_two_apart(
    apart: float, mistaken: bool
) -> None:
    def at(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    _, wrong = engine_check.compare([at(0), at(apart)], [at(14), at(apart)], math.cos(math.radians(18)))
    assert wrong == ("1 embeddings are nearer to another row's original" if mistaken else "")


def test_the_check_needs_python_alone(copy: Path) -> None:
    folder = copy / "first" / "tensorrt"
    content = json.loads((folder / "expected.json").read_text())
    values = ", ".join(str(value) for row in content["embeddings"] for value in row)
    (folder / "output.json").write_text(f'[{{"name": "embedding", "dimensions": "8x24", "values": [{values}]}}]')
    isolated = [sys.executable, "-I", "-S", "check.py", "expected.json", "output.json"]
    done = subprocess.run(isolated, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert "lowest cosine 1.000000 on 8 rows" in done.stdout


def test_a_missing_trtexec_is_named_with_the_next_step(copy: Path) -> None:
    done = build_engine(copy / "first", Path("/nowhere/trtexec"))
    assert done.returncode == 1
    assert done.stderr == (
        "first: there is no /nowhere/trtexec; run this in NVIDIA's Triton image, or let TRTEXEC name a trtexec\n"
    )


@pytest.mark.parametrize("change", ["a new version", "another build of this version"])
def test_a_script_does_not_build_another_version_than_it_has_the_answers_of(
    copy: Path, trtexec: Path, change: str
) -> None:
    if change == "a new version":
        shutil.copytree(copy / "first" / "1", copy / "first" / "2")
    else:
        manifest = copy / "first" / "1" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"sharpness": 2.0', '"sharpness": 2.1'))
    done = build_engine(copy / "first", trtexec)
    assert done.returncode == 1
    assert "run clipchoir-export tensorrt again" in done.stderr
    write_engine_builds(copy)
    assert build_engine(copy / "first", trtexec).returncode == 0


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_the_config_is_the_onnx_models_but_for_the_runtime(copy: Path) -> None:
    path = copy / "first" / "config.pbtxt"
    own = "version_policy { specific { versions: 1 } } dynamic_batching { max_queue_delay_microseconds: 700 }\n"
    path.write_text(
        re.sub(r"(?s)dynamic_batching \{.*?\n\}\n", own, path.read_text()).replace(
            "max_batch_size: 64", "max_batch_size: 6"
        )
    )
    write_engine_builds(copy, opt_batch=4)
    onnx, plan = read_config(path), read_config(copy / "first" / "configs" / "tensorrt.pbtxt")
    assert (plan.platform, plan.backend, plan.default_model_filename) == ("tensorrt_plan", "", "model.plan")
    assert not plan.HasField("optimization")
    for field in ("name", "max_batch_size", "input", "output", "dynamic_batching", "version_policy"):
        assert getattr(plan, field) == getattr(onnx, field)
    script = (copy / "first" / "tensorrt" / "build.sh").read_text()
    assert "--optShapes=pixels:4x224x224x3" in script
    assert "--maxShapes=pixels:6x224x224x3" in script
    assert "--shapes=pixels:6x224x224x3" in script  # of the 8 images that there are


def test_the_line_that_the_command_prints_builds_every_engine(copy: Path, trtexec: Path) -> None:
    printed = run("clipchoir-export", "tensorrt", copy)
    assert printed.returncode == 0, printed.stderr
    assert "first: wrote first/configs/tensorrt.pbtxt, first/tensorrt/build.sh" in printed.stderr
    words = shlex.split(printed.stdout)
    assert words[:8] == ["docker", "run", "--rm", "--gpus", "all", "-v", f"{copy}:/models", "${TRITON_IMAGE}"]
    inside = [word.replace("/models", str(copy)) for word in words[8:]]  # where the image would have it
    environment = os.environ | {"PATH": f"{trtexec.parent}:{os.environ['PATH']}"}
    done = subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(copy.glob("*/1/model.plan"))) == 4
    failed = subprocess.run(inside, env=environment | {"FAKE_TRTEXEC": "no engine"}, capture_output=True, check=False)
    assert failed.returncode == 1


def test_tritonserver_serves_the_repository_as_before_and_takes_the_configs_when_told(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    models = ["evaclip", "evaclip_text", "metaclip", "metaclip_text"]
    assert write_engine_builds(copy) == models
    (copy / "metaclip" / "1" / "model.plan").write_text("an engine")
    with (
        serving(copy, Address.choose()) as server,
        grpcclient.InferenceServerClient(server.address.grpc) as client,
    ):
        assert infer(client, [encoded(noise(0))], ["error"])["error"][0, 0] == b""
    command = triton._command
    monkeypatch.setattr(triton, "_command", lambda *options: [*command(*options), "--model-config-name=tensorrt"])
    # The embedded Triton has no TensorRT: just the models that have such a config fail.
    with pytest.raises(ServerError) as failed, serving(copy, Address.choose()):
        pass
    reasons = dict(line.split(": ", 1) for line in str(failed.value).splitlines())
    del reasons["model zero_shot"]  # which has them as its steps
    assert sorted(reasons) == [f"model {name}" for name in models]
    assert all("unable to find" in reason and "tensorrt" in reason for reason in reasons.values()), reasons


def without_verification(copy: Path) -> None:
    """As `--verify off` leaves an encoder."""
    (copy / "second" / "1" / "verification.safetensors").unlink()
    manifest = copy / "second" / "1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"verification": None}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            without_verification,
            r"second/1 was built with --verify off, so .* nothing to check .*; build it again without",
        ),
        (lambda copy: (copy / "second/1/verification.safetensors").unlink(), "cannot be used .*; build the repository"),
        (
            lambda copy: (copy / "second/1/model.onnx").unlink(),
            r"model.onnx is missing\n.* is not whole; build it again",
        ),
        (lambda copy: (copy / "second/config.pbtxt").write_text("name:"), r"second/config\.pbtxt is no Triton config"),
    ],
)
def test_a_repository_whose_engines_could_not_be_checked_is_refused_and_left_as_it_is(
    built: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(RepositoryError, match=message):
        write_engine_builds(copy)
    assert not [*copy.glob("*/tensorrt"), *copy.glob("*/configs/tensorrt.pbtxt")]


def test_a_batch_that_the_config_does_not_allow_is_refused(built: Path) -> None:
    with pytest.raises(RepositoryError, match="takes batches of 64 at most; an engine cannot be tuned for 65"):
        write_engine_builds(built, opt_batch=65)


def test_integers_are_not_for_engines(built: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    path = next(copy.glob("first/*/manifest.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "int8"}))
    with pytest.raises(RepositoryError, match=r"first is int8, .*; TensorRT needs it built with fp16, bf16 or fp32"):
        write_engine_builds(copy)


def test_a_folder_of_something_else_is_refused_by_the_command(tmp_path: Path) -> None:
    done = run("clipchoir-export", "tensorrt", tmp_path)
    assert done.returncode == 1
    assert "is no clipchoir repository" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_is_named_and_nothing_half_written_stays(copy: Path) -> None:
    shutil.rmtree(copy / "first" / "configs")
    (copy / "first" / "configs").write_text("in the way")
    with pytest.raises(
        RepositoryError, match=r"first/configs/tensorrt\.pbtxt cannot be written: .*; make .*/first writable"
    ):
        write_engine_builds(copy)
    assert not list(copy.rglob("*.part"))
