import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import load_file

from clipchoir_export.checkpoints.files import open_checkpoint
from clipchoir_export.checkpoints.hub import fetch_checkpoint, fetch_configs, fetch_file, is_hub_id
from clipchoir_export.errors import CheckpointError
from clipchoir_export.families import find_family
from clipchoir_export.spec import EncoderSpec
from tests.support.checkpoints import write_eva_clip, write_open_clip
from tests.support.fake_hub import FakeHub, Refusal, running_hub

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
BIN_INDEX = json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}).encode()
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": INDEX,
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"two",
}
WHOLE = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> Iterator[FakeHub]:
    """A hub of this test's own, and a cache and a home folder that are still empty."""
    with running_hub() as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "AGENT_HARNESSES_PATH": str(tmp_path / "agents.json"),
            "DOWNLOAD_CHUNK_SIZE": 64,  # bytes; a transfer that breaks off loses at most that
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        close_session()
        yield running
        close_session()


@pytest.mark.parametrize("text", ["org/name", "org/name@main", "org/name@refs/pr/1", "Org-1/na_me.v2@v1.0"])
def test_an_organisation_and_a_name_are_a_hub_id(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["name", "a/b/c", "./a/b", "./name", "../name", "/name", "~/name", "builtin:a/b"])
def test_paths_and_bare_names_are_no_hub_ids(text: str) -> None:
    assert not is_hub_id(text)


@pytest.mark.parametrize("text", ["org/", "org/a b", "org/a--b", "org/a..b", "org/a.git", "org/a@", "org/a@b..c"])
def test_what_hubs_do_not_allow_is_no_hub_id(text: str) -> None:
    assert not is_hub_id(text)


@pytest.mark.parametrize("suffix", ["toml", "safetensors", "bin", "pt", "pth"])
def test_a_file_is_no_hub_id(suffix: str) -> None:
    assert not is_hub_id(f"org/name.{suffix}")
    with pytest.raises(CheckpointError, match="is not the id of a hub repository"):
        fetch_checkpoint(f"org/name.{suffix}")


@pytest.mark.parametrize("write", [write_open_clip, write_eva_clip])
def test_a_fetched_checkpoint_opens_with_every_tensor_of_the_original(
    hub: FakeHub, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    original = write(tmp_path / "original")
    hub.publish("org/name", original)
    fetched = open_checkpoint(fetch_checkpoint("org/name"))
    expected = load_file(next(original.glob("*.safetensors")))
    assert fetched.keys() == expected.keys()
    assert all(torch.equal(fetched[name].read(), tensor) for name, tensor in expected.items())


def test_only_configs_and_weights_at_the_top_are_downloaded(hub: FakeHub) -> None:
    others = ["modeling.py", "README.md", "tokenizer.json", "onnx/config.json", "onnx/model.safetensors"]
    hub.publish("org/name", {**WHOLE, "tokenizer_config.json": b"{ }", **dict.fromkeys(others, b"")})
    folder = fetch_checkpoint("org/name")
    files = ["config.json", "model.safetensors", "tokenizer_config.json"]
    assert sorted(file.name for file in folder.iterdir()) == files
    assert hub.downloads() == files


PREFERENCE = [
    ("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"),
    ("open_clip_model.safetensors",),
    ("model.safetensors",),
    ("other.safetensors",),
    ("pytorch_model.bin.index.json", "pytorch_model-1.bin"),
    ("open_clip_pytorch_model.bin",),
    ("pytorch_model.bin",),
    ("other.bin",),
    ("other.pt",),
    ("other.pth",),
]


@pytest.mark.parametrize("best", range(len(PREFERENCE)), ids=[names[0] for names in PREFERENCE])
def test_weights_come_in_one_format_safetensors_first(hub: FakeHub, best: int) -> None:
    indexes = {"model.safetensors.index.json": INDEX, "pytorch_model.bin.index.json": BIN_INDEX}
    offered = [name for names in PREFERENCE[best:] for name in names]
    hub.publish("org/name", {name: indexes.get(name, name.encode()) for name in offered})
    fetch_checkpoint("org/name")
    assert hub.downloads() == sorted(PREFERENCE[best])


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_ends_at_a_commit(hub: FakeHub) -> None:
    hub.publish("org/name", {"model.safetensors": b"first"})
    tagged = hub.publish("org/name", {"model.safetensors": b"second"}, revision="v1.0")
    newest = hub.publish("org/name", {"model.safetensors": b"third"})
    for revision, commit, content in [
        ("", newest, b"third"),
        ("@v1.0", tagged, b"second"),
        (f"@{tagged}", tagged, b"second"),
    ]:
        folder = fetch_checkpoint(f"org/name{revision}")
        assert folder.name == commit
        assert (folder / "model.safetensors").read_bytes() == content


def test_what_is_in_the_cache_is_not_downloaded_again(hub: FakeHub) -> None:
    hub.publish("org/name", SHARDED)
    folder = fetch_checkpoint("org/name")
    hub.requests.clear()
    assert fetch_checkpoint("org/name") == folder
    assert hub.downloads() == []


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    weights = bytes(range(256)) * 4
    hub.publish("org/name", {"model.safetensors": weights})
    hub.cut_after["model.safetensors"] = 640
    folder = fetch_checkpoint("org/name")
    assert (folder / "model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.requests if request.range] == ["bytes=640-"]


def test_a_fetch_that_failed_midway_leaves_only_the_missing_files_to_the_next(hub: FakeHub) -> None:
    hub.publish("org/name", SHARDED)
    hub.refusals["/model-2.safetensors"] = Refusal(403)
    with pytest.raises(CheckpointError):
        fetch_checkpoint("org/name")
    assert hub.downloads() == ["config.json", "model-1.safetensors", "model.safetensors.index.json"]
    hub.refusals.clear()
    hub.requests.clear()
    folder = fetch_checkpoint("org/name")
    assert hub.downloads() == ["model-2.safetensors"]
    assert (folder / "model-2.safetensors").read_bytes() == b"two"


@pytest.mark.parametrize("files", [WHOLE, SHARDED], ids=["whole", "sharded"])
def test_offline_the_cache_answers_and_nothing_is_asked(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.publish("org/name", files)
    folder = fetch_checkpoint("org/name")
    hub.requests.clear()
    assert fetch_checkpoint("org/name", offline=True) == folder
    assert fetch_checkpoint(f"org/name@{commit}", offline=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as the environment variable does
    assert fetch_checkpoint("org/name") == folder
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "@v1.0", f"@{'0' * 40}"])
def test_offline_what_is_not_in_the_cache_is_named_with_the_cache_and_the_next_step(
    hub: FakeHub, cache: Path, revision: str
) -> None:
    hub.publish("org/name", WHOLE)
    with pytest.raises(CheckpointError, match=r"^org/name.*: is not.* in the cache .*; fetch it once") as raised:
        fetch_checkpoint(f"org/name{revision}", offline=True)
    assert str(cache) in str(raised.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "missing"), [(WHOLE, "model.safetensors"), (SHARDED, "model-2.safetensors")], ids=["whole", "sharded"]
)
def test_offline_a_checkpoint_that_is_in_the_cache_in_part_is_refused(
    hub: FakeHub, cache: Path, files: dict[str, bytes], missing: str
) -> None:
    hub.publish("org/name", files)
    hub.refusals[f"/{missing}"] = Refusal(403)
    with pytest.raises(CheckpointError):
        fetch_checkpoint("org/name")
    with pytest.raises(CheckpointError, match=rf"^org/name .* holds no .* in the cache \({cache}\); fetch it once"):
        fetch_checkpoint("org/name", offline=True)


@pytest.mark.parametrize(
    ("asked_for", "refusal", "message"),
    [
        ("/models/org/name", Refusal(404, "RepoNotFound"), "there is no such repository"),
        (
            "/models/org/name",
            Refusal(401, "RepoNotFound"),
            "there is no such repository, or it is private: .*HF_TOKEN",
        ),
        ("/models/org/name", Refusal(500), "answered with status 500"),
        ("/revision/v9", Refusal(404, "RevisionNotFound"), "no such revision"),
        ("/model.safetensors", Refusal(401, "GatedRepo"), "accept the licence .* set HF_TOKEN"),
        ("/model.safetensors", Refusal(403, "GatedRepo"), "accept the licence .* set HF_TOKEN"),
        ("/model.safetensors", Refusal(403), "accept the licence .* set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_next_step(
    hub: FakeHub, asked_for: str, refusal: Refusal, message: str
) -> None:
    hub.publish("org/name", WHOLE)
    hub.publish("org/name", WHOLE, revision="v9")
    hub.refusals[asked_for] = refusal
    hub_id = "org/name@v9" if "v9" in asked_for else "org/name"
    with pytest.raises(CheckpointError, match=rf"^{hub_id}: .*{message}"):
        fetch_checkpoint(hub_id)


@pytest.mark.parametrize("fetched_before", [False, True])
def test_no_connection_is_told_with_the_next_step(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, fetched_before: bool
) -> None:
    hub.publish("org/name", WHOLE)
    if fetched_before:
        fetch_checkpoint("org/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"^org/name: no connection.*HF_HUB_OFFLINE=1"):
        fetch_checkpoint("org/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: make room in {cache}, or set HF_HOME"),
        (RuntimeError("reconstruction failed"), "the download failed: reconstruction failed; try again"),  # of xet
    ],
)
def test_a_transfer_that_fails_here_is_told_with_the_next_step(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    hub.publish("org/name", WHOLE)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with pytest.raises(CheckpointError, match=rf"^org/name: {message.format(cache=cache)}"):
        fetch_checkpoint("org/name")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["README.md", "onnx/model.safetensors"], "holds no weights"),
        (["a.pt", "b.pt"], r"several weight files and no index: a\.pt, b\.pt; download the one to use"),
        (["model.safetensors.index.json", "model-1.safetensors"], r"holds no model-2\.safetensors, a shard"),
    ],
)
def test_a_repository_without_usable_weights_is_refused(hub: FakeHub, files: list[str], message: str) -> None:
    hub.publish("org/name", dict.fromkeys(files, INDEX))
    with pytest.raises(CheckpointError, match=rf"^org/name .*{message}"):
        fetch_checkpoint("org/name")


def test_an_index_that_cannot_be_read_is_refused(hub: FakeHub) -> None:
    hub.publish("org/name", {"model.safetensors.index.json": b"[]"})
    with pytest.raises(CheckpointError, match=r"org--name/.*index\.json: cannot be read as an index of shards"):
        fetch_checkpoint("org/name")


def test_nothing_is_printed_where_there_is_no_terminal(hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.publish("org/name", SHARDED)
    fetch_checkpoint("org/name")
    assert capfd.readouterr() == ("", "")


def fetch_open_clip(architecture: str, tag: str, offline: bool = False) -> Path:
    encoder = EncoderSpec(name="x", source="open_clip", architecture=architecture, checkpoint=tag)
    published = find_family("open_clip").published_file(encoder)
    assert published is not None
    return fetch_file(published, offline)


def test_configs_come_without_the_weights(hub: FakeHub) -> None:
    hub.publish("org/name", SHARDED)
    folder = fetch_configs("org/name")
    assert (folder / "config.json").read_bytes() == SHARDED["config.json"]
    assert hub.downloads() == ["config.json"]
    hub.publish("org/weights", {"model.safetensors": b"weights"})
    with pytest.raises(CheckpointError, match=r'^org/weights .*holds no config.*; name its "architecture"'):
        fetch_configs("org/weights")


@pytest.mark.parametrize(
    ("architecture", "tag", "offered", "expected"),
    [
        ("ViT-B-32", "openai", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], 0),
        ("ViT-B-32", "openai", ["open_clip_pytorch_model.bin", "pytorch_model.bin"], 0),
        ("ViTamin-S", "datacomp1b", ["pytorch_model.bin", "open_clip_pytorch_model.bin"], 0),
        ("ViTamin-S", "datacomp1b", ["pytorch_model.bin", "pytorch_model.safetensors"], 1),
    ],
)
def test_a_tag_of_open_clip_is_the_file_that_open_clip_would_load(
    hub: FakeHub, architecture: str, tag: str, offered: list[str], expected: int
) -> None:
    hub.publish(_repository(architecture, tag), {name: name.encode() for name in offered})
    file = fetch_open_clip(architecture, tag)
    assert file.read_bytes() == offered[expected].encode()
    assert hub.downloads() == [offered[expected]]
    assert fetch_open_clip(architecture, tag, offline=True) == file


def test_a_tag_that_cannot_be_had_is_named(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=r'no checkpoint "nosuch" of ViT-B-32; it has: .*openai'):
        fetch_open_clip("ViT-B-32", "nosuch")
    repository = _repository("ViT-B-32", "openai")
    with pytest.raises(CheckpointError, match=f"^{repository}: is not.* in the cache"):
        fetch_open_clip("ViT-B-32", "openai", offline=True)
    hub.publish(repository, {"README.md": b""})
    with pytest.raises(CheckpointError, match=f"^{repository} .*holds no open_clip_model.safetensors or"):
        fetch_open_clip("ViT-B-32", "openai")


WEIGHTS = bytes(range(256)) * 4
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
NAME = f"vit-{SHA256[:8]}.pt"


def _repository(architecture: str, tag: str) -> str:
    repository: str = open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"].rpartition("/")[0]
    return repository
