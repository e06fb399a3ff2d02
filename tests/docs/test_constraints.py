"""constraints/ pins everything that this environment needs, and the environment follows it."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = ("3.10", "3.11", "3.12")
EXTRAS = ("export", "server", "cpu", "dev", "parquet", "plots", "web")


def pins(python: str) -> dict[str, str]:
    """Versions by package."""
    lines = (ROOT / "constraints" / f"python{python}.txt").read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9.-]+)==([0-9a-z.]+)", line) for line in lines]
    assert all(found), "a constraints file has exact versions, and nothing else"
    return {match[1]: match[2] for match in found if match}


def requirements(python: str) -> list[Requirement]:
    """What pyproject.toml asks for with this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    texts = project["dependencies"] + [text for extra in EXTRAS for text in optional[extra]]
    wanted = [Requirement(text) for text in texts]
    environment = {"python_version": python}
    return [each for each in wanted if not each.marker or each.marker.evaluate(environment)]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_to_a_version_that_fits(python: str) -> None:
    pinned = pins(python)
    for each in requirements(python):
        if (name := canonicalize_name(each.name)) != "clipchoir":
            assert name in pinned, f"{name} has no pin: run `make constraints`"
            assert each.specifier.contains(pinned[name]), f"{each} is pinned to {pinned[name]}: run `make constraints`"


def test_pillow_is_the_same_everywhere() -> None:
    """Another one resizes some images differently, so embeddings could not be compared."""
    assert len({pins(python)["pillow"] for python in PYTHONS}) == 1


def test_onnxruntime_ends_where_python_3_10_does() -> None:
    assert pins("3.10")["onnxruntime"] == "1.23.2"


def test_what_is_installed_is_what_is_pinned() -> None:
    differing = {}
    for name, pinned in pins("{}.{}".format(*sys.version_info[:2])).items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "missing"
        if installed.partition("+")[0] != pinned:
            differing[name] = (installed, pinned)
    assert not differing, "installed and pinned differ: run `make .venv/.ready`"


def test_make_uses_the_pins_and_notices_their_change() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "--constraint constraints/python$$version.txt" in text
    assert "$(READY): pyproject.toml $(CONSTRAINTS)" in text
