"""CONTRIBUTING.md and docs/architecture.md name files that are there; CHANGELOG.md has the current version."""

import re
from importlib.metadata import version

from tests.conftest import ROOT

PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
ROOTS = ("steps/", "export/", "client/", "server/", "tests/", "docs/", "deploy/", "benchmarks/", "model_repository/")


def test_every_file_that_they_name_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`([\w./-]+)`", page.read_text()):
            if name.startswith("clipchoir_steps/"):
                assert (ROOT / "steps" / name).exists(), name
            elif name.startswith(ROOTS):
                assert (ROOT / name).exists(), name


def test_the_folders_of_the_tests_are_there() -> None:
    text = PAGES[0].read_text()
    rooms = {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert set(re.findall(r"`tests/(\w+)/`", text)) == rooms


def test_the_changelog_has_the_version_and_what_is_to_come() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version("clipchoir") in headings


def test_every_heading_of_the_changelog_is_one_of_keep_a_changelog() -> None:
    kinds = set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Fixed", "Removed", "Security"}
