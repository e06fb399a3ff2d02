"""`clipchoir-export refresh`: steps and configs of an existing repository are renewed without its checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
from rich.progress import Progress

from clipchoir_export.build import assembly
from clipchoir_export.build.encoder import BuildOptions
from clipchoir_export.build.label_sets import embed_label_set
from clipchoir_export.build.refresh import refresh_repository
from clipchoir_export.build.repository import build_repository
from clipchoir_export.cli import app
from clipchoir_export.errors import RepositoryError
from clipchoir_export.inspection import inspect
from clipchoir_export.spec import load_ensemble
from clipchoir_steps.label_sets.spec import LabelSet
from clipchoir_steps.layout import FORMAT, RECIPE, label_set_file, read_manifest
from tests.support import checkpoints

SPEC = """
name = "tiny"
label_sets = ["pets"]
[[encoders]]
name = "tiny"
source = "open_clip"
checkpoint = "../checkpoint"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny repository, its text encoder included; the checkpoint and the spec that it was built from are gone."""
    source = tmp_path_factory.mktemp("source")
    checkpoints.write_open_clip(source / "checkpoint")
    for folder, name, content in (
        ("label_sets", "pets.toml", 'classes = ["cat", "dog"]\n'),
        ("ensembles", "tiny.toml", SPEC),
    ):
        (source / folder).mkdir()
        (source / folder / name).write_text(content)
    spec = source / "ensembles" / "tiny.toml"
    target = tmp_path_factory.mktemp("built") / "repository"
    with Progress(disable=True) as progress:
        options = BuildOptions(verify="off", text_encoders=True)
        build_repository(load_ensemble(spec), spec, target, progress, options)
    shutil.rmtree(source)
    return target


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "repository")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_to_do(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(repository.parent)
    with pytest.raises(SystemExit) as ended:
        app(["refresh", str(repository)])
    assert ended.value.code == 0
    assert f"{repository} is up to date" in capsys.readouterr().err.replace("\n", " ")
    assert contents(repository.parent) == before


def test_steps_and_configs_that_differ_are_renewed(repository: Path) -> None:
    code = repository / "ensembling" / "1" / "clipchoir_steps" / "scoring" / "formula.py"
    whole = code.read_bytes()
    code.write_text("of an older clipchoir")
    (repository / "preprocess" / "1" / "older.py").touch()
    config = repository / "tiny_text" / "config.pbtxt"
    config.write_text("name: 'of an older clipchoir'")
    changed = ["ensembling/2", "preprocess/2", "ensembling/config.pbtxt", "tiny_text/config.pbtxt"]
    assert refresh_repository(repository) == changed
    assert (repository / "ensembling" / "2" / code.relative_to(code.parents[2])).read_bytes() == whole
    assert not (repository / "preprocess" / "2" / "older.py").exists()
    assert 'name: "tiny_text"' in config.read_text()
    assert inspect(repository).problems == []
    assert inspect(repository).label_sets == {"pets": ["cat", "dog"]}
    old, new = (read_manifest(repository / "ensembling" / version) for version in "12")
    assert old == new
    assert refresh_repository(repository) == []
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_another_pillow_gives_other_identities(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "pixels_digest", lambda *_: "otherpixels")
    new = refresh_repository(repository)
    assert new[0] == "ensembling/2"
    first, second = (
        read_manifest(repository / "ensembling" / version)["encoders"]["tiny"]["embedding_id"] for version in "12"
    )
    assert first != second
    assert f'"1={first},2={second}"' in (repository / "ensembling" / "config.pbtxt").read_text()


def test_label_sets_that_were_added_survive(repository: Path) -> None:
    with Progress(disable=True) as progress:
        embed_label_set(repository, LabelSet.parse("birds", {"classes": ["finch", "wren"]}), progress)
    (repository / "ensembling" / "1" / "model.py").write_text("of an older clipchoir")
    assert refresh_repository(repository)[0] == "ensembling/2"
    first, second = (label_set_file(repository / "ensembling" / version, "birds").read_bytes() for version in "12")
    assert first == second
    assert inspect(repository).label_sets["birds"] == ["finch", "wren"]


def test_serving_options_of_the_last_build_are_kept(repository: Path) -> None:
    """They are in no version: a build that changes them alone makes none."""
    recipe = repository / "ensembling" / RECIPE
    content = json.loads(recipe.read_text())
    content["spec"]["serving"]["encoder_timeout_ms"] = 1234
    recipe.write_text(json.dumps(content))
    assert "tiny/config.pbtxt" in refresh_repository(repository)
    assert "default_timeout_microseconds: 1234000" in (repository / "tiny" / "config.pbtxt").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_a_failure_or_an_interruption_leaves_everything(
    repository: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    for step in ("ensembling", "preprocess"):
        (repository / step / "1" / "model.py").write_text("of an older clipchoir")
    before = contents(repository.parent)
    rename = Path.rename

    def fails(path: Path, to: Path) -> Path:
        if to == repository / "ensembling" / "2":  # the last one; others are in place
            assert (repository / "preprocess" / "2").is_dir()
            raise error
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((KeyboardInterrupt, RepositoryError)):
        refresh_repository(repository)
    monkeypatch.undo()
    assert contents(repository.parent) == before
    assert refresh_repository(repository) == ["ensembling/2", "preprocess/2", "ensembling/config.pbtxt"]


def test_steps_of_an_interrupted_build_are_left_to_it(repository: Path) -> None:
    done = repository.parent / ".repository.building" / "tiny" / ".done"
    done.parent.mkdir(parents=True)
    done.touch()
    assert refresh_repository(repository) == []
    assert done.exists()


def test_what_is_missing_is_named(repository: Path) -> None:
    label_set = label_set_file(repository / "ensembling" / "1", "pets")
    manifest = repository / "ensembling" / "1" / "manifest.json"
    rolled_back = json.dumps(json.loads(manifest.read_text()) | {"repository_version": "older"})
    whole = contents(repository)
    for path, damage, problem in (
        (repository / "ensembling" / RECIPE, None, "has no ensembling/build.json, which says what to renew: build it"),
        (repository / "ensembling" / RECIPE, b"{", "build.json: cannot be read"),
        (repository / "ensembling" / RECIPE, b'{"repository_version": "older"}', "after a roll-back, build"),
        (manifest, None, "has no version of ensembling with a manifest"),
        (manifest, rolled_back.encode(), "after a roll-back, build the older ensemble again"),
        (repository / "tiny" / "1" / "manifest.json", None, "has no tiny with a manifest: build it again"),
        (label_set, b"", "is not a label set file"),
        (repository / "zero_shot" / "config.pbtxt", None, "is no clipchoir repository"),
    ):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(RepositoryError, match=problem):
            refresh_repository(repository)
        path.write_bytes(whole[path])
    recipe = repository / "ensembling" / RECIPE
    recipe.write_text(recipe.read_text().replace('"sharpness"', '"sharpnes"'))
    with pytest.raises(RepositoryError, match=r"is not of this clipchoir: build it again"):
        refresh_repository(repository)


def test_an_older_format_is_renewed_and_a_newer_one_refused(repository: Path) -> None:
    config = repository / "zero_shot" / "config.pbtxt"
    now = f'{{ key: "repository_format" value {{ string_value: "{FORMAT}" }} }}'
    text = config.read_text()
    assert now in text
    config.write_text(text.replace(now, now.replace(f'"{FORMAT}"', '"1"')))
    with pytest.raises(RepositoryError, match="renew it with: clipchoir-export refresh"):
        inspect(repository)
    assert refresh_repository(repository) == ["zero_shot/config.pbtxt"]
    assert config.read_text() == text
    config.write_text(text.replace(now, now.replace(f'"{FORMAT}"', '"99"')))
    with pytest.raises(RepositoryError, match="newer clipchoir: upgrade"):
        refresh_repository(repository)
