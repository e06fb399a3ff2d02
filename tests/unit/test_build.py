"""From a spec to a repository: versions, resuming, linking, and what a failure leaves behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from rich.progress import Progress
from safetensors.numpy import load_file

from clipchoir_export.build import encoder as encoder_build
from clipchoir_export.build.encoder import BuildOptions
from clipchoir_export.build.repository import build_repository
from clipchoir_export.errors import CheckpointError, RepositoryError, VerificationError
from clipchoir_export.inspection import inspect
from clipchoir_export.onnx.modules import ServedImageEncoder
from clipchoir_export.spec import load_ensemble
from clipchoir_server.triton import Address, serving
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer
from clipchoir_steps.layout import newest
from tests.conftest import BIN, HEEDING_CTRL_C, encoded, infer, noise, run
from tests.support import checkpoints

STAGING = ".repository.building"


@pytest.fixture
def tiny_spec(tmp_path: Path) -> Path:
    checkpoints.write_open_clip(tmp_path / "checkpoint")
    (tmp_path / "label_sets").mkdir()
    (tmp_path / "label_sets" / "pets.toml").write_text('classes = ["cat", "dog"]\ntemplates = ["{}", "a {}"]\n')
    path = tmp_path / "ensembles" / "tiny.toml"
    path.parent.mkdir()
    path.write_text(
        'name = "tiny"\nlabel_sets = ["pets"]\n[[encoders]]\nname = "tiny"\nsource = "open_clip"\n'
        'checkpoint = "../checkpoint"\nsharpness = 2.0\n'
    )
    return path


@pytest.fixture
def target(tiny_spec: Path) -> Path:
    return tiny_spec.parent.parent / "out" / "repository"


UNVERIFIED, VERIFIED = BuildOptions(verify="off"), BuildOptions()


def build(spec_path: Path, target: Path, options: BuildOptions = UNVERIFIED) -> list[str]:
    with Progress(disable=True) as progress:
        return build_repository(load_ensemble(spec_path), spec_path, target, progress, options)


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def manifest(version: Path) -> dict:
    return json.loads((version / "manifest.json").read_text())


def test_the_manifest_says_what_was_built(tiny_spec: Path, target: Path) -> None:
    assert build(tiny_spec, target, VERIFIED) == [
        "ensembling/1",
        "label_sets/1",
        "preprocess/1",
        "tiny/1",
        "zero_shot/1",
    ]
    found = manifest(target / "tiny" / "1")
    assert found["preprocessing"]["sharpness"] == 2.0
    assert found["preprocessing"]["image_size"] == 224
    assert found["verification"]["batches"] == [1, 2, 5, 32]
    assert found["verification"]["min_cosine"] > 0.999999
    assert found["checkpoint_files"][0]["name"] == "open_clip_model.safetensors"
    assert found["flops_per_image"] > 2 * 49 * 3 * 32 * 32 * 32  # the patch embedding alone
    assert "torch" in found["tools"]
    assert f'"1={found["fingerprint"]}"' in (target / "ensembling" / "config.pbtxt").read_text()
    evidence = load_file(target / "tiny" / "1" / "verification.safetensors")
    assert evidence["pixels"].shape == (8, 224, 224, 3)
    assert evidence["embedding"].shape == (8, 24)
    assert [path.name for path in target.parent.iterdir()] == ["repository"]


def test_a_build_without_changes_makes_no_new_version(tiny_spec: Path, target: Path) -> None:
    build(tiny_spec, target)
    before = state(target)
    assert build(tiny_spec, target) == []
    assert state(target) == before


def test_another_label_set_makes_a_new_version_of_ensembling_alone(tiny_spec: Path, target: Path) -> None:
    build(tiny_spec, target)
    label_set = tiny_spec.parent.parent / "label_sets" / "pets.toml"
    label_set.write_text(label_set.read_text().replace('"dog"', '"dog", "bird"'))
    assert build(tiny_spec, target) == ["ensembling/2"]
    assert (target / "ensembling" / "1" / "label_sets" / "pets.safetensors").is_file()


def test_other_serving_options_reach_every_config_and_make_no_new_version(tiny_spec: Path, target: Path) -> None:
    build(tiny_spec, target)
    configs = target / "tiny" / "configs"
    own = configs.parent / "own.pbtxt"
    (configs / "gpu.pbtxt").rename(own)
    configs.rmdir()  # as in a repository from before there were variants
    assert build(tiny_spec, target) == []
    assert (configs / "gpu.pbtxt").read_bytes() == own.read_bytes()
    (configs / "own.pbtxt").write_bytes(own.read_bytes())
    tiny_spec.write_text(tiny_spec.read_text() + "[serving]\nencoder_timeout_ms = 1234\ngpus = [3]\n")
    assert build(tiny_spec, target) == []
    assert "default_timeout_microseconds: 1234000" in (target / "tiny" / "config.pbtxt").read_text()
    assert "gpus: [ 3 ]" in (configs / "gpu.pbtxt").read_text()
    assert (configs / "own.pbtxt").read_bytes() == own.read_bytes()


def test_a_new_version_is_served_and_rolled_back_by_its_folder(tiny_spec: Path, target: Path) -> None:
    row = encoded(noise(3))

    def embedding() -> np.ndarray:
        with (
            serving(target, Address.choose()) as triton,
            grpcclient.InferenceServerClient(triton.address.grpc) as client,
        ):
            return infer(client, [row], ["tiny_embedding", "scores"])["tiny_embedding"]

    build(tiny_spec, target)
    first = embedding()
    checkpoint = tiny_spec.parent.parent / "checkpoint"
    older = checkpoint.rename(checkpoint.with_name("older"))
    checkpoints.write_open_clip(checkpoint, seed=7)
    assert build(tiny_spec, target) == ["ensembling/2", "tiny/2"]
    second = embedding()
    assert np.abs(first - second).max() > 0.01
    for model in ("ensembling", "tiny"):
        (target / model / "2").rename(target.parent / f"{model}-2")
    np.testing.assert_array_equal(embedding(), first)
    (problem,) = inspect(target).problems
    assert "after a roll-back, build the older ensemble again" in problem
    checkpoint.rename(checkpoint.with_name("newer"))
    older.rename(checkpoint)
    assert build(tiny_spec, target) == []
    assert inspect(target).problems == []


def test_an_encoder_and_an_ensembling_of_different_builds_do_not_load(tiny_spec: Path, target: Path) -> None:
    build(tiny_spec, target)
    config = target / "ensembling" / "config.pbtxt"
    config.write_text(config.read_text().replace('"1=', '"2='))
    served = run("clipchoir-server", target, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    assert served.returncode != 0
    assert "has no tiny_fingerprint of version 1" in served.stdout + served.stderr


def test_half_a_rollback_does_not_load(tiny_spec: Path, target: Path) -> None:
    build(tiny_spec, target)
    checkpoints.write_open_clip(tiny_spec.parent.parent / "checkpoint", seed=7)
    build(tiny_spec, target)
    (target / "ensembling" / "2").rename(target.parent / "ensembling-2")
    served = run("clipchoir-server", target, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    assert served.returncode != 0
    assert "tiny/2 is of the checkpoint" in served.stdout + served.stderr
    # Whoever names versions is trusted.
    config = target / "tiny" / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { specific { versions: [ 1 ] } }\n")
    with serving(target, Address.choose()) as triton, grpcclient.InferenceServerClient(triton.address.grpc) as client:
        assert client.is_model_ready("tiny", "1")
        assert not client.is_model_ready("tiny", "2")


def test_an_embeddings_identity_changes_with_all_that_it_depends_on(tiny_spec: Path, target: Path) -> None:
    def identity() -> tuple[str, str]:
        build(tiny_spec, target)
        found = manifest(newest(target / "ensembling") or target)["encoders"]["tiny"]
        assert f'={found["embedding_id"]}"' in (target / "ensembling" / "config.pbtxt").read_text()
        return found["fingerprint"], found["embedding_id"]

    first = identity()
    spec = tiny_spec.read_text()
    tiny_spec.write_text(spec + "weight = 2.0\n")
    assert identity() == first
    tiny_spec.write_text(spec.replace("sharpness = 2.0", "sharpness = 1.5"))
    sharpened = identity()
    tiny_spec.write_text(spec + 'precision = "fp16"\n')
    rounded = identity()
    assert {first[0]} == {sharpened[0], rounded[0]}
    checkpoints.write_open_clip(tiny_spec.parent.parent / "checkpoint", seed=7)
    assert len({first[1], sharpened[1], rounded[1], identity()[1]}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sharpness = 2.0", 'sharpness = 2.0\nprecision = "fp16"'), None),
        (('name = "tiny"\nsource', 'name = "other"\nsource'), "is of the encoders tiny, this ensemble has other"),
        (("../checkpoint", "../wide"), "returns 24 numbers, the new version 224 and 16; choose another --repository"),
    ],
)
def test_what_may_change_from_version_to_version(
    tiny_spec: Path, target: Path, change: tuple[str, str], message: str | None
) -> None:
    build(tiny_spec, target)
    checkpoints.write_eva_clip(tiny_spec.parent.parent / "wide")
    content = tiny_spec.read_text().replace(*change)
    tiny_spec.write_text(content.replace("open_clip", "eva_clip") if "wide" in content else content)
    if message is None:
        assert build(tiny_spec, target) == ["ensembling/2", "tiny/2"]
        return
    before = state(target)
    with pytest.raises(RepositoryError, match=message):
        build(tiny_spec, target)
    assert state(target) == before


def test_a_failed_verification_changes_nothing(tiny_spec: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tiny_spec, target, VERIFIED)
    before = state(target)
    tiny_spec.write_text(tiny_spec.read_text().replace("2.0", "1.9"))
    # An exporter that gets the sharpness wrong.
    monkeypatch.setattr(
        encoder_build, "ServedImageEncoder", lambda tower, arch, _sharpness: ServedImageEncoder(tower, arch, 1.0)
    )
    for _ in range(2):  # nor is the wrong model taken up again
        with pytest.raises(VerificationError):
            build(tiny_spec, target, VERIFIED)
        assert state(target) == before
    monkeypatch.undo()
    assert build(tiny_spec, target, VERIFIED) == ["ensembling/2", "tiny/2"]


@pytest.mark.parametrize("at", ["tiny", "ensembling"])
def test_when_a_new_version_cannot_be_put_in_place_everything_stays(
    tiny_spec: Path, target: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    build(tiny_spec, target)
    contents = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    tiny_spec.write_text(tiny_spec.read_text().replace("2.0", "1.5"))
    rename = Path.rename

    def full_disk(path: Path, to: Path) -> Path:
        if to == target / at / "2":
            raise OSError(28, "No space left on device", str(to))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(RepositoryError, match="No space left on device"):
        build(tiny_spec, target)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == contents
    monkeypatch.undo()
    assert build(tiny_spec, target) == ["ensembling/2", "tiny/2"]


def test_a_folder_that_is_no_repository_is_left_alone(tiny_spec: Path) -> None:
    target = tiny_spec.parent / "photos"
    target.mkdir()
    (target / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(RepositoryError, match="holds something else than a clipchoir repository"):
        build(tiny_spec, target)
    assert (target / "holiday.jpg").read_bytes() == b"precious"


def test_an_interrupted_build_leaves_no_repository_and_goes_on_where_it_was(
    tiny_spec: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (  # the step after the one that is looked for takes long
        "import sys, time; from clipchoir_export import __main__; "
        "from clipchoir_export.build import encoder as encoder_build; "
        "encoder_build.EncoderBuild._embed = lambda *_: time.sleep(120); "
        f"sys.argv[1:] = ['build', {str(tiny_spec)!r}, '--repository', {str(target)!r}]; __main__.main()"
    )
    with subprocess.Popen([*HEEDING_CTRL_C, sys.executable, "-c", slow], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (target.parent / STAGING / "tiny" / ".done").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert process.stderr is not None
        message = process.stderr.read()
        assert b"Traceback" not in message
        assert b"the same command goes on from there" in message
    assert [path.name for path in target.parent.iterdir()] == [STAGING]
    written = (target.parent / STAGING / "tiny" / "model.onnx").stat()
    monkeypatch.setattr(encoder_build, "write_model", None)  # it must not be needed again
    build(tiny_spec, target)
    assert (target / "tiny" / "1" / "model.onnx").stat().st_ino == written.st_ino
    assert [path.name for path in target.parent.iterdir()] == ["repository"]


def test_what_one_encoder_has_finished_survives_the_failure_of_another(tiny_spec: Path, target: Path) -> None:
    second = tiny_spec.parent.parent / "second"
    checkpoints.write_open_clip(second, seed=7)
    sound = second.with_name("sound")
    second.rename(sound)
    checkpoints.write_open_clip(second, seed=7)
    checkpoints.change(second / "open_clip_model.safetensors", "visual.proj", lambda tensor: tensor * float("nan"))
    tiny_spec.write_text(
        tiny_spec.read_text()
        + '[[encoders]]\nname = "second"\nsource = "open_clip"\ncheckpoint = "../second"\nsharpness = 1.0\n'
    )
    options = BuildOptions(text_encoders=True)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
            build(tiny_spec, target, options)
    written = (target.parent / STAGING / "tiny" / "model.onnx").stat()
    second.rename(second.with_name("damaged"))
    sound.rename(second)
    assert {"tiny/1", "tiny_text/1", "second/1"} < set(build(tiny_spec, target, options))
    assert (target / "tiny" / "1" / "model.onnx").stat().st_ino == written.st_ino
    assert not list(target.rglob(".*"))


def test_a_build_that_fails_early_leaves_nothing(
    tiny_spec: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder_build, "write_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_spec, target)
    assert list(target.parent.iterdir()) == []


def test_two_builds_of_one_repository_at_a_time_are_refused(
    tiny_spec: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def build_again(*_: object) -> None:
        with pytest.raises(RepositoryError, match=r"another build of .* is running") as caught:
            build(tiny_spec, target)
        refused.append(caught.value)
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder_build, "write_model", build_again)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_spec, target)
    assert refused


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    tiny_spec: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(RepositoryError, match=r"has 0\.0 GB left, tiny needs 0\.0 GB; make room"):
        build(tiny_spec, target)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_cannot_be_written_to_its_end_is_an_error_without_leftovers(tiny_spec: Path, target: Path) -> None:
    limited = f"ulimit -f 200; exec {BIN}/clipchoir-export build {tiny_spec} --repository {target}"  # KB
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120, check=False)  # noqa: S607
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(target.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tiny_spec: Path) -> None:
    with pytest.raises(RepositoryError, match=r"/proc/.*: cannot be written"):
        build(tiny_spec, Path("/proc/clipchoir/repository"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_text_encoders_are_models_and_stay_in_step(tiny_spec: Path, target: Path, precision: str) -> None:
    tiny_spec.write_text(f'{tiny_spec.read_text()}\nprecision = "{precision}"\n')
    options = BuildOptions(verify="off", text_encoders=True)
    assert "tiny_text/1" in build(tiny_spec, target, options)
    found = manifest(target / "tiny_text" / "1")
    assert found["kind"] == "text_encoder"
    image = manifest(target / "tiny" / "1")
    assert found["fingerprint"] == image["fingerprint"]
    assert (found["precision"], image["precision"]) == ("fp32", precision)
    label_set = load_file(target / "ensembling" / "1" / "label_sets" / "pets.safetensors")
    tokens = PromptTokenizer(target / "ensembling" / "1" / "tokenizer.json")(["cat", "a cat", "dog", "a dog"])
    with serving(target, Address.choose()) as triton, grpcclient.InferenceServerClient(triton.address.grpc) as client:
        tensor = grpcclient.InferInput("tokens", list(tokens.shape), "INT64")
        tensor.set_data_from_numpy(tokens)
        answer = client.infer("tiny_text", [tensor], client_timeout=30).as_numpy("embedding")
    np.testing.assert_allclose(answer, label_set["tiny"], atol=2e-5)
    checkpoints.write_open_clip(tiny_spec.parent.parent / "checkpoint", seed=7)
    assert build(tiny_spec, target) == ["ensembling/2", "tiny/2", "tiny_text/2"]


def linked_spec(tiny_spec: Path, kind: str) -> Path:
    if kind == "eva_clip":
        checkpoints.write_eva_clip(tiny_spec.parent.parent / "other")
        tiny_spec.write_text(
            tiny_spec.read_text().replace("open_clip", "eva_clip").replace("../checkpoint", "../other")
        )
    return tiny_spec


@pytest.mark.parametrize("kind", ["open_clip", "eva_clip"])
def test_linked_weights_stay_in_the_checkpoints_file(tiny_spec: Path, target: Path, kind: str) -> None:
    build(linked_spec(tiny_spec, kind), target, BuildOptions(link_weights=True))
    version = target / "tiny" / "1"
    weights = manifest(version)["weights"]
    (name,) = weights["linked_files"]
    original = tiny_spec.parent.parent / ("checkpoint" if kind == "open_clip" else "other") / name
    assert (version / name).stat().st_ino == original.stat().st_ino
    assert not (version / name).is_symlink()
    assert weights["bytes_linked"] > 0.9 * manifest(version)["parameters"] * 4
    assert manifest(version)["verification"]["min_cosine"] > 0.999999
    with serving(target, Address.choose()) as triton, grpcclient.InferenceServerClient(triton.address.grpc) as client:
        assert infer(client, [encoded(noise(1))], ["label"])["label"][0, 0] in (b"cat", b"dog")


def test_weights_of_another_type_are_copied_and_the_build_says_why(tiny_spec: Path, target: Path) -> None:
    tiny_spec.write_text(tiny_spec.read_text() + 'precision = "fp16"\n')
    built = run("clipchoir-export", "build", tiny_spec, "--repository", target, "--link-weights")
    assert built.returncode == 0, built.stderr
    assert "weights were copied" in built.stderr
    assert "stored as float32, the graph needs float16" in built.stderr.replace("\n", " ")
    assert not manifest(target / "tiny" / "1")["weights"]["linked_files"]


def test_weights_that_a_type_cannot_hold_are_named(tiny_spec: Path, target: Path) -> None:
    checkpoint = tiny_spec.parent.parent / "checkpoint" / "open_clip_model.safetensors"
    checkpoints.change(checkpoint, "visual.proj", lambda tensor: tensor * 1e6)
    tiny_spec.write_text(tiny_spec.read_text() + 'precision = "fp16"\n')
    with pytest.raises(CheckpointError, match=r"tower\.proj.* reaches .*, which float16 cannot hold; build with bf16"):
        build(tiny_spec, target)
    checkpoints.change(checkpoint, "visual.proj", lambda tensor: tensor * float("nan"))
    with pytest.raises(CheckpointError, match=r"holds values that are not finite; the checkpoint is damaged"):
        build(tiny_spec, target)
    assert list(target.parent.iterdir()) == []


def test_verification_can_be_left_out(tiny_spec: Path, target: Path) -> None:
    build(tiny_spec, target)
    assert manifest(target / "tiny" / "1")["verification"] is None
    assert build(tiny_spec, target, BuildOptions(verify="full")) == ["tiny/2"]
