"""Checkpoints in every layout that is published, and damaged ones."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipchoir_export.checkpoints.files import open_checkpoint
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import registry as encoders
from clipchoir_export.spec import EncoderSpec
from tests.support import checkpoints, reference

Tensors = dict[str, Tensor]
IMAGES = torch.linspace(-2, 2, 2 * 3 * 224 * 224).reshape(2, 3, 224, 224)


def halves(tensors: Tensors) -> list[Tensors]:
    names = sorted(tensors)
    return [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]


def write_shards(folder: Path, tensors: Tensors, stem: str, suffix: str, save: Callable[[Tensors, Path], None]) -> None:
    weight_map: dict[str, str] = {}
    for number, part in enumerate(halves(tensors), start=1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_one_safetensors(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / "model.safetensors")


def as_sharded_safetensors(folder: Path, tensors: Tensors) -> None:
    write_shards(folder, tensors, "model", "safetensors", save_file)


def as_one_bin(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def as_sharded_bin(folder: Path, tensors: Tensors) -> None:
    write_shards(folder, tensors, "pytorch_model", "bin", torch.save)


def as_training_checkpoint(folder: Path, tensors: Tensors) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    content = {"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {0: {"step": 7}}}}
    torch.save(content, folder / "epoch_3.pt")


def as_file_before_zip(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)


LAYOUTS = [
    as_one_safetensors,
    as_sharded_safetensors,
    as_one_bin,
    as_sharded_bin,
    as_training_checkpoint,
    as_file_before_zip,
]


def spec(source: str, checkpoint: Path) -> EncoderSpec:
    return EncoderSpec(name="tiny", source=source, checkpoint=str(checkpoint))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_open_clip_checkpoint_loads_from_every_layout(
    tmp_path: Path, layout: Callable[[Path, Tensors], None]
) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    original = open_clip.create_model(f"local-dir:{folder}").eval()
    weights = folder / "open_clip_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    layout(folder, tensors)
    encoder = encoders.open_encoder(spec("open_clip", folder), tmp_path / "spec.toml")
    with torch.inference_mode():
        torch.testing.assert_close(encoder.image.load()(IMAGES), original.encode_image(IMAGES), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("post_norm", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_eva_clip_checkpoint_loads_from_every_layout(
    tmp_path: Path, layout: Callable[[Path, Tensors], None], post_norm: bool
) -> None:
    folder = checkpoints.write_eva_clip(tmp_path / "checkpoint", post_norm=post_norm)
    expected = reference.HuggingFaceEvaClip.load(folder)
    (folder / "model.safetensors").unlink()
    layout(folder, expected.tensors)
    encoder = encoders.open_encoder(spec("eva_clip", folder), tmp_path / "spec.toml")
    tokens = open_clip.SimpleTokenizer()(["a photo of a cat"])
    with torch.inference_mode():
        torch.testing.assert_close(encoder.image.load()(IMAGES), expected.encode_image(IMAGES), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder.text.load()(tokens), expected.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_an_eva_clip_checkpoint_loads_from_the_older_single_file(tmp_path: Path, fused: bool) -> None:
    folder = checkpoints.write_eva_clip(tmp_path / "checkpoint")
    expected = reference.HuggingFaceEvaClip.load(folder)
    towers = encoders.open_encoder(spec("eva_clip", folder), tmp_path / "spec.toml")
    older = {f"visual.{name}": tensor for name, tensor in towers.image.load().state_dict().items()}
    if not fused:
        for name in [name for name in older if ".qkv." in name]:
            parts = zip("qkv", older.pop(name).chunk(3), strict=True)
            older |= {name.replace(".qkv.", f".{part}_proj."): tensor.clone() for part, tensor in parts}
    older |= {f"text.{name}": tensor.clone() for name, tensor in towers.text.load().state_dict().items()}
    (folder / "model.safetensors").unlink()
    torch.save({"module": older | {"logit_scale": torch.tensor(4.6)}}, folder / "EVA_CLIP.pt")
    encoder = encoders.open_encoder(spec("eva_clip", folder), tmp_path / "spec.toml")
    with torch.inference_mode():
        torch.testing.assert_close(encoder.image.load()(IMAGES), expected.encode_image(IMAGES), atol=1e-5, rtol=1e-5)


def test_half_precision_tensors_keep_their_type_and_values(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5, dtype=torch.float16),
        "brain": torch.randn(4, dtype=torch.bfloat16),
        "scalar": torch.tensor(4.6),
        "empty": torch.empty(0, 3),
        "whole": torch.arange(6).reshape(2, 3),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    stored = open_checkpoint(tmp_path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (stored[name].dtype, stored[name].shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(stored[name].read(), tensor)


class Hostile:
    """What unpickling must not run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("hostile-was-here"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2), "payload": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is no checkpoint of tensors and plain values"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "hostile-was-here").exists()


def break_file(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(data[: len(data) // 2])
    elif how == "header":
        path.write_bytes(data[:20])
    elif how == "noise":
        path.write_bytes(b"\xff" * 4000)
    elif how == "offsets":
        path.write_bytes(data.replace(b'"shape":[2,3]', b'"shape":[2,9]'))


@pytest.mark.parametrize("how", ["empty", "half", "header", "noise", "offsets"])
def test_damaged_safetensors_are_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2, 3), "other": torch.zeros(40)}, path)
    break_file(path, how)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("how", ["empty", "half", "noise"])
def test_damaged_pickles_are_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(200, 3)}, path)
    break_file(path, how)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"weight": "text"}, torch.zeros(2)])
def test_a_pickle_of_something_else_is_named(tmp_path: Path, content: object) -> None:
    with (tmp_path / "weights.pt").open("wb") as file:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"not (a tensor|tensors by name)"):
        open_checkpoint(tmp_path / "weights.pt")


def test_a_plain_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"weight": [1, 2]}, protocol=2))
    with pytest.raises(CheckpointError, match=r"weights\.pt: "):
        open_checkpoint(tmp_path / "weights.pt")


def test_missing_shards_foreign_paths_and_double_tensors_are_named(tmp_path: Path) -> None:
    as_sharded_safetensors(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(2)})
    index = tmp_path / "model.safetensors.index.json"
    good = index.read_text()
    index.write_text(good.replace("model-00001", "../model-00001"))
    with pytest.raises(CheckpointError, match="is not a file beside the index"):
        open_checkpoint(tmp_path)
    index.write_text(good)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="a is in another shard, too"):
        open_checkpoint(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors is missing; .* names 2 shards"):
        open_checkpoint(tmp_path)


def test_a_folder_without_or_with_several_weight_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)
    for name in ("one.pt", "two.pt"):
        torch.save({"weight": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several weight files and no index: one\.pt, two\.pt; name the one"):
        open_checkpoint(tmp_path)


def test_a_config_that_contradicts_the_architecture_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.write_eva_clip(tmp_path / "checkpoint")
    named = EncoderSpec(name="tiny", source="eva_clip", architecture="EVA-CLIP-8B", checkpoint=str(folder))
    with pytest.raises(CheckpointError, match=r"config\.json is not of EVA-CLIP-8B"):
        encoders.describe(named, tmp_path / "spec.toml")


def test_a_single_file_needs_an_architecture(tmp_path: Path) -> None:
    folder = checkpoints.write_open_clip(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match='name its "architecture"'):
        encoders.describe(spec("open_clip", folder / "open_clip_model.safetensors"), tmp_path / "spec.toml")
