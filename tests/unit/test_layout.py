"""The layout of a repository: what is read from configs and manifests, and what damage is called."""

from pathlib import Path

import pytest

from clipchoir_export.cli import app
from clipchoir_server.errors import ServerError
from clipchoir_server.repository import check_repository
from clipchoir_steps import layout
from clipchoir_steps.encoder_versions import mismatch

CONFIG = """
# version_policy is only spoken of here
name: "tiny"  parameters [ { key: "encoders" value { string_value: "a,b" } } ]
"""


def version(model: Path, number: int, fingerprint: str) -> None:
    folder = model / str(number)
    folder.mkdir(parents=True)
    layout.write_manifest(folder, {"fingerprint": fingerprint})


def test_parameters_are_those_of_the_config(tmp_path: Path) -> None:
    (tmp_path / layout.CONFIG).write_text(CONFIG)
    assert layout.config_parameters(layout.read_config(tmp_path / layout.CONFIG)) == {"encoders": "a,b"}


@pytest.mark.parametrize(
    ("content", "problem"), [(b"parameters [ {", "is no Triton config"), (b"\xff", "is no Triton"), (None, "No such")]
)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / layout.CONFIG
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(layout.RepositoryError, match=f"{path}.*{problem}"):
        layout.read_config(path)


def test_versions_are_counted_as_numbers(tmp_path: Path) -> None:
    assert layout.newest(tmp_path / "model") is None
    for name in ("2", "10", "configs", ".3"):
        (tmp_path / "model" / name).mkdir(parents=True)
    assert layout.versions(tmp_path / "model") == [2, 10]
    assert layout.next_version(tmp_path / "model") == "11"


def test_label_sets_that_are_being_written_or_come_from_the_spec_are_not_added_ones(tmp_path: Path) -> None:
    layout.label_sets_folder(tmp_path).mkdir()
    for name in ("scenes", "pets", ".birds"):
        layout.label_set_file(tmp_path, name).touch()
    assert layout.added_label_sets(tmp_path, ["scenes"]) == {"pets": layout.label_set_file(tmp_path, "pets")}


def test_an_encoder_of_another_build_is_seen_unless_the_config_chooses_its_version(tmp_path: Path) -> None:
    version(tmp_path / "tiny", 1, "a")
    version(tmp_path / "tiny", 2, "b")
    config = tmp_path / "tiny" / layout.CONFIG
    config.write_text(CONFIG)  # a comment chooses nothing
    assert mismatch(tmp_path, {"tiny": "b"}) is None
    assert "tiny/2 is of the checkpoint b" in str(mismatch(tmp_path, {"tiny": "a"}))
    config.write_text(CONFIG + "version_policy { specific { versions: [ 1 ] } }")
    assert mismatch(tmp_path, {"tiny": "a"}) is None
    config.write_text("{")  # that is Triton's to say
    assert mismatch(tmp_path, {"tiny": "a"}) is None


OLD, OLDER = "older clipchoir; build it again", "older clipchoir; renew it with: clipchoir-export refresh"
NEWER = "newer clipchoir: upgrade"


@pytest.mark.parametrize(
    ("found", "message"), [(None, OLD), (None, OLDER), ("1", OLD), ("1", OLDER), ("?", OLDER), ("3", NEWER)]
)
def test_a_repository_of_another_format_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], found: str | None, message: str
) -> None:
    (tmp_path / layout.ZERO_SHOT).mkdir()
    (tmp_path / layout.ENSEMBLING / "1").mkdir(parents=True)
    layout.write_manifest(tmp_path / layout.ENSEMBLING / "1", {"encoders": {"tiny": {"fingerprint": "a"}}})
    if message == OLDER:
        (tmp_path / layout.ENSEMBLING / layout.RECIPE).write_text("{}")
    entry = "" if found is None else f'parameters {{ key: "repository_format" value {{ string_value: "{found}" }} }}'
    (tmp_path / layout.ZERO_SHOT / layout.CONFIG).write_text(entry)
    for command in ("inspect", "tensorrt", "embed"):
        arguments = [command, str(tmp_path), *(["scenes"] if command == "embed" else [])]
        with pytest.raises(SystemExit) as ended:
            app(arguments)
        assert ended.value.code == 1
        assert message in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(ServerError, match=message):
        check_repository(tmp_path, None)
    if message == NEWER:
        with pytest.raises(SystemExit):
            app(["build", "demo", "--repository", str(tmp_path)])
        assert message in capsys.readouterr().err.replace("\n", " ")
