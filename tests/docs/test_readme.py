"""The README is short, its tables and specs are right, its pictures current."""

import re
import subprocess
from pathlib import Path

import pytest

from clipchoir_export.spec import load_ensemble, load_label_set
from tests.conftest import BIN, ROOT
from tests.docs.pages import PAGES, blocks
from tools import pictures

README = (ROOT / "README.md").read_text()
RECIPE_LINES = 6


def test_it_is_short() -> None:
    assert len(README.encode()) <= 7000


def test_recipes_are_short() -> None:
    (recipes,) = re.findall(r"^## Recipes\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    snippets = re.findall(r"^```\w+\n(.*?)^```", recipes, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    assert max(len([line for line in each.splitlines() if line]) for each in snippets) <= RECIPE_LINES


def test_every_page_of_the_docs_is_in_its_table() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", README))
    assert linked == {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}
            assert anchor in anchors, link


def test_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)", page.read_text())) <= targets, page
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_options_of_the_pages_exist() -> None:
    commands = [
        ("clipchoir-export build", "clipchoir-export", ["build"]),
        ("clipchoir-export embed", "clipchoir-export", ["embed"]),
        ("clipchoir-server", "clipchoir-server", []),
        ("clipchoir classify", "clipchoir", ["classify"]),
        ("clipchoir evaluate", "clipchoir", ["evaluate"]),
    ]
    text = "\n".join(page.read_text() for page in PAGES)
    for start, command, arguments in commands:
        known = subprocess.run(
            [BIN / command, *arguments, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "250"}
        ).stdout
        for line in re.findall(rf"{start} [^`\n]*", text):
            for option in re.findall(r"(?<=\s)--[a-z-]+", line.partition("#")[0]):
                assert option in known, (start, option)


@pytest.mark.parametrize(
    ("page", "names"), [("README.md", ["small", "eva"]), ("docs/export.md", ["metaclip"])], ids=["README", "export"]
)
def test_the_spec_is_right(tmp_path: Path, page: str, names: list[str]) -> None:
    (block,) = (each for each in blocks("toml") if each.page == page)
    path = tmp_path / "mine.toml"
    path.write_text(block.text)
    assert [each.name for each in load_ensemble(path).encoders] == names
    assert load_label_set("scenes", path).classes


def test_the_chart_shows_the_stored_results() -> None:
    assert pictures.shown(pictures.CHART) == pictures.chart_data(), "run `make pictures`"


def test_the_screenshot_shows_the_page_as_it_is() -> None:
    assert pictures.shown(pictures.SCREENSHOT) == pictures.page_digest(), "run `make pictures`"


def test_the_pictures_are_in_the_readme() -> None:
    for path in (pictures.CHART, pictures.SCREENSHOT):
        assert f"]({path.relative_to(ROOT)})" in README


def test_the_figures_are_those_of_the_chart() -> None:
    throughput = pictures.chart_data()["Throughput as a share of the limit"]
    reached = re.search(r"reaches (\S+) of the demo pair's throughput without a server", README)
    assert reached
    assert float(reached[1]) == throughput["demo pair, batches of 32"]
