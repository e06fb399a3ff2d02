"""docs/client.md is compared with the client."""

import inspect
import re
import subprocess
import sys

import pytest
import typer.main

from clipchoir import AsyncClient, Client, Options
from clipchoir.cli import _app, app
from clipchoir.cli._options import Server
from clipchoir_server.triton import Triton
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "client.md").read_text()


def test_the_snippet_runs(server: Triton) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    script = snippet.replace("localhost:8001", server.address.grpc)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Sea")


def test_exit_codes() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    named = {_app.FAILED, _app.SOME_IMAGES_FAILED, _app.NO_SERVER, _app.INTERRUPTED}
    assert codes == {0, 2} | named
    assert {int(code) for code in re.findall(r"(\d+) ", _app.EXIT_CODES)} == codes


def test_commands() -> None:
    (table,) = re.findall(r"\| command \|.*?\n\n", TEXT, re.DOTALL)
    documented = set(re.findall(r"^\| (`.*?`(?:, `.*?`)*) \|", table, re.MULTILINE))
    names = {name for cell in documented for name in re.findall(r"`(\w+)`", cell)}
    command = typer.main.get_command(app)
    assert names == set(command.commands)  # type: ignore[attr-defined]


def test_environment_variables() -> None:
    in_code = set(re.findall(r'envvar="(\w+)"', inspect.getsource(sys.modules[Server.__module__])))
    in_code |= set(re.findall(r'envvar="(\w+)"', (ROOT / "client" / "clipchoir" / "cli" / "_top.py").read_text()))
    assert set(re.findall(r"`(CLIPCHOIR_\w+)`", TEXT)) == in_code


def test_methods_and_options() -> None:
    (table,) = re.findall(r"\| method \|.*?\n\n", TEXT, re.DOTALL)
    documented = set(re.findall(r"`(\w+)\(", table)) | {"encoders", "service"}
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert documented == public - {"close"}
    assert set(Options.__annotations__) <= set(re.findall(r"`(\w+)`", TEXT))


@pytest.mark.parametrize(
    "name", ["classify", "stream", "embed", "score", "label_sets", "label_set", "check", "status", "close"]
)
def test_both_clients_take_the_same_arguments(name: str) -> None:
    one, other = (inspect.signature(getattr(kind, name)).parameters for kind in (Client, AsyncClient))
    assert list(one) == list(other)
    assert [each.default for each in one.values()] == [each.default for each in other.values()]


def test_both_clients_are_made_alike() -> None:
    one, other = (inspect.signature(kind).parameters for kind in (Client, AsyncClient))
    assert {name: each.default for name, each in one.items()} == {name: each.default for name, each in other.items()}
