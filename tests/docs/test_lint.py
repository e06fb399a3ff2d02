"""`make lint` reaches every Python file, and `.ci/run` runs it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from mypy.main import process_options

from tests.conftest import BIN, ROOT

OTHER_ENVIRONMENTS = "benchmarks/peers/apps/"  # programs of the peers: pyproject.toml excludes them from mypy
ERROR = "\n_planted: int = 'a type error'\n"


def git(*arguments: str) -> list[str]:
    """Lines of git's answer."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.splitlines()


def python_files() -> set[str]:
    """Every Python file that is or will be committed."""
    files = git("ls-files", "--cached", "--others", "--exclude-standard", "*.py")
    return {name for name in files if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def lint() -> list[list[str]]:
    """The commands of `make lint`, in words."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.ready", "lint"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


def test_ruff_checks_every_file(lint: list[list[str]]) -> None:
    assert [".venv/bin/ruff", "check", "."] in lint
    assert [".venv/bin/ruff", "format", "--check", "."] in lint
    shown = subprocess.run(
        [BIN / "ruff", "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert python_files() <= {str(Path(line).relative_to(ROOT)) for line in shown.stdout.splitlines() if line}


def test_mypy_checks_every_file(lint: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [".venv/bin/mypy"] in lint
    monkeypatch.chdir(ROOT)
    sources, options = process_options([])
    assert options.strict_equality
    assert options.disallow_untyped_defs
    (loop,) = (words for words in lint if "for" in words)
    models = {word.rstrip(";") for word in loop if word.rstrip(";").endswith("/model.py")}
    checked = {source.path for source in sources if source.path} | models
    left_out = {name for name in python_files() - checked if not name.startswith(OTHER_ENVIRONMENTS)}
    assert not left_out


@pytest.mark.parametrize("name", ["model_repository/preprocess/1/model.py", "steps/clipchoir_steps/scoring/formula.py"])
def test_a_type_error_is_found(tmp_path: Path, name: str) -> None:
    """The rest of lint's run is left out: it would take a minute."""
    for each in ["pyproject.toml", *python_files()]:
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / each, tmp_path / each)
    with (tmp_path / name).open("a") as file:
        file.write(ERROR)
    found = subprocess.run([BIN / "mypy", name], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 1
    assert re.search(rf"^{re.escape(name)}:\d+: error: Incompatible types in assignment", found.stdout, re.MULTILINE)


def test_the_hooks_before_a_commit_are_the_commands_of_lint(lint: list[list[str]]) -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = [hook["entry"].split() for hook in local["hooks"]]
    assert commands == [[*lint[0][:2]], [*lint[1][:3]], ["make", "lint"]]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}


def test_ci_runs_lint_and_the_tests_and_needs_a_browser() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("make lint") < lines.index("make test")
    assert any(line.startswith("export CLIPCHOIR_REQUIRE_BROWSER=1") for line in lines)
    assert [line for line in lines if line.startswith("command -v chromium") and "exit 1" in line]
