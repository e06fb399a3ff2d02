"""The pages that a reader sees, and the blocks of code on them."""

import re
from dataclasses import dataclass

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "demo" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file's path.
        language: `sh`, `python`, ...
        text: without the fence.
    """

    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """For the test's report."""
        return f"{self.page}: {self.text.splitlines()[0][:60]}"


def blocks(*languages: str) -> list[Block]:
    """Of all pages, in order."""
    return [
        Block(str(page.relative_to(ROOT)), language, text)
        for page in PAGES
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        if language in languages
    ]
