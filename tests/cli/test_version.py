"""`--version` and `-h` of every command."""

from importlib.metadata import version

import pytest

import clipchoir
from tests.conftest import run

COMMANDS = {
    "clipchoir": ["classify", "embed", "evaluate", "submit", "labels", "status", "top", "web"],
    "clipchoir-export": ["build", "refresh", "embed", "source", "list", "inspect", "tensorrt"],
    "clipchoir-server": [],
}


def test_the_package_says_its_version() -> None:
    assert clipchoir.__version__ == version("clipchoir")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_version_and_explains_itself(command: str) -> None:
    said = run(command, "--version")
    assert (said.returncode, said.stdout.split()) == (0, [command, clipchoir.__version__])
    for subcommand in ([], *([each] for each in COMMANDS[command])):
        short, long = (run(command, *subcommand, option) for option in ("-h", "--help"))
        assert short.returncode == 0, short.stderr
        assert short.stdout == long.stdout
        assert "Usage" in short.stdout
