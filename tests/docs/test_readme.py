"""What the README tells a reader to run, run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clipchoir_export.spec import load_ensemble, load_label_set
from clipchoir_server.triton import Triton
from tests.conftest import BIN, ROOT

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(
    r"^    (\.venv/bin/clipchoir (?:classify|evaluate|labels) .*?|curl .*?)(?:  +#.*)?$", README, re.MULTILINE
)


def on(server: Triton, text: str) -> str:
    """The README's default ports, replaced by those of the tests' server."""
    return text.replace("localhost:8001", server.address.grpc).replace("localhost:8000", server.address.http)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python_snippets_run(server: Triton, snippet: str) -> None:
    script = on(server, snippet)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Sea" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_client_commands_run(server: Triton, command: str, tmp_path: Path) -> None:
    words = shlex.split(on(server, command).replace(".venv/bin/", f"{BIN}/"))
    if words[0].endswith("clipchoir"):
        words += ["--url", server.address.grpc]
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    answer = tmp_path / "answer.bin"
    assert b"Sea" in (answer.read_bytes() if answer.exists() else result.stdout)


def test_all_snippets_and_commands_were_found() -> None:
    assert (len(SNIPPETS), len(COMMANDS)) == (3, 5)


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_options_of_the_readme_exist() -> None:
    for command, arguments in (("clipchoir-export", ["build"]), ("clipchoir-server", []), ("clipchoir", ["classify"])):
        text = subprocess.run(
            [BIN / command, *arguments, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"}
        ).stdout
        for line in re.findall(rf"{command} .*", README):
            for option in re.findall(r"--[a-z-]+", line.partition("#")[0]):
                assert option in text, (command, option)


def test_the_spec_of_the_readme_is_right(tmp_path: Path) -> None:
    (spec,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(spec)
    assert load_ensemble(path).encoders[0].name == "metaclip"
    assert load_label_set("scenes", path).classes
