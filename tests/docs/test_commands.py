"""Every command and every Python snippet of README and docs runs, or is listed here with the reason why it cannot."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipchoir_server.triton import Triton
from demo.run import NEXT_STEPS
from tests.conftest import BIN, ROOT
from tests.docs.pages import PAGES, Block, blocks

# What a line begins with -> why it is not run here, and what checks it instead.
NOT_RUN = {
    r"apt-get install": "changes the machine",
    r"(sudo )?pip install": "changes the environment; test_wheel.py installs the package",
    r"pre-commit ": "is not among what the tests need; test_lint.py checks the commands of its hooks",
    r"make ": "sets up or runs for minutes; the target is looked up below",
    r"(TLS_FOLDER=\S+ )?docker ": "needs Docker; test_deployment.py checks the file",
    r"tritonserver ": "needs NVIDIA's image",
    r"grpcurl ": "may not be installed; test_contract_docs.py sends the message",
    r"(\.venv/bin/)?clipchoir-server ": "runs until Ctrl-C; the tests' server is started so",
    r"\.venv/bin/clipchoir-export build (base|mine\.toml)": "downloads checkpoints; test_export.py builds small ones",
    r"\.venv/bin/clipchoir-export (inspect|tensorrt) build/base": "needs the build of the line above",
    r"\.venv/bin/clipchoir-export build demo": "conftest.py builds the tests' repository so",
    r"\.venv/bin/clipchoir-export embed build/mine": "test_label_sets.py embeds one",
    r"(\.venv/bin/)?python -m (benchmarks|demo|tools)\.": "takes minutes; the module is looked up below",
    r"\.venv/bin/python -m pytest": "runs tests; the files are looked up below",
}
SHELL = blocks("sh")
SESSIONS = blocks("console")
PYTHON = blocks("python")


def runnable(text: str) -> str:
    """Without what cannot run here."""
    kept = [line for line in text.splitlines() if not any(re.match(start, line) for start in NOT_RUN)]
    return "\n".join(kept).strip()


def on(server: Triton, text: str) -> str:
    """The default ports, replaced by those of the tests' server, and the commands of this environment."""
    text = text.replace("localhost:8001", server.address.grpc).replace("localhost:8000", server.address.http)
    return text.replace(".venv/bin/", f"{BIN}/").replace("curl ", "curl --silent --fail ")


@pytest.fixture
def folder(tmp_path: Path, repository: Path) -> Path:
    """Looks like a checkout in which `make demo` has run."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "demo").symlink_to(repository)
    return tmp_path


def run_shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.usefixtures("commands_find_the_server")
@pytest.mark.parametrize(
    "block",
    [each for each in SHELL if runnable(each.text) and "grpcurl" not in each.text],
    ids=lambda block: block.name,
)
def test_commands_run(server: Triton, block: Block, folder: Path) -> None:
    script = runnable(block.text)
    done = run_shell(on(server, script), folder)
    if "demo/samples" in script and "--out " not in script:
        answer = folder / "answer.bin"
        assert (
            "Sea" in (answer.read_text(errors="replace") if answer.exists() else done.stdout) or "beach" in done.stdout
        )


def sessions() -> list[tuple[str, str]]:
    """Commands and what they print."""
    found = []
    for block in SESSIONS:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@pytest.mark.usefixtures("commands_find_the_server")
@pytest.mark.parametrize(("command", "output"), sessions())
def test_commands_print_what_the_page_shows(server: Triton, command: str, output: str, folder: Path) -> None:
    printed = run_shell(on(server, command), folder).stdout
    shown = [line.rstrip() for line in output.splitlines()]
    lines = [line.rstrip() for line in printed.splitlines() if "moods" not in line]  # which the tests' spec adds
    assert lines == shown


@pytest.mark.usefixtures("commands_find_the_server")
@pytest.mark.parametrize(
    "line",
    [line for line in NEXT_STEPS.splitlines() if line.startswith("  .venv/bin/") and "clipchoir web" not in line],
)
def test_what_the_demo_prints_runs(server: Triton, line: str, folder: Path) -> None:
    command = (
        re.split(r" {3,}", line.strip())[0].replace("IMAGES", "demo/samples/Sea").replace("--count 60", "--count 1")
    )
    assert run_shell(on(server, command), folder).stdout


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_runs(server: Triton, block: Block) -> None:
    done = subprocess.run(
        [sys.executable, "-c", on(server, block.text)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Sea" in done.stdout


def test_the_blocks_were_found() -> None:
    assert len(PYTHON) >= 5
    assert len(sessions()) >= 2
    assert len([each for each in SHELL if runnable(each.text)]) >= 7


def test_every_reason_is_needed() -> None:
    lines = [line for block in SHELL for line in block.text.splitlines()]
    assert [start for start in NOT_RUN if not any(re.match(start, line) for line in lines)] == []


def test_targets_and_modules_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in SHELL:
        assert set(re.findall(r"^make ([a-z]+)", block.text, re.MULTILINE)) <= targets, block.name
        for module in re.findall(r"python -m ((?:benchmarks|demo|tools)\S*)", block.text):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
        for path in re.findall(r"python -m pytest .*?(tests/\S+?)(?:::\S*)?$", block.text, re.MULTILINE):
            assert (ROOT / path).exists(), path


def test_no_command_hides_in_an_indented_block() -> None:
    """Only fenced blocks are run; what is indented on a page is a formula or an output."""
    commands = r"^    (\.venv/bin/|make |clipchoir|docker |pip |python |curl |git )"
    found = {
        (page.name, line)
        for page in PAGES
        for line in re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines()
        if re.match(commands, line)
    }
    assert not found
