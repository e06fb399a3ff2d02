"""docs/troubleshooting.md quotes messages that the code prints."""

import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `(.+?)` \| .+ \|$", PAGE, re.MULTILINE)


def source() -> str:
    """All product code, with strings that go over several lines joined, and `...` for what is filled in."""
    files = [
        path
        for folder in ("client", "export/clipchoir_export", "server", "steps")
        for path in (ROOT / folder).rglob("*.py")
    ]
    text = re.sub(r"""["']\s*\n\s*f?["']""", "", "\n".join(path.read_text() for path in files))
    text = text.replace("{{}}", "\0").replace('\\"', '"')
    return re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "...", text).replace("\0", "{}")


SOURCE = source()


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_prints_it(message: str) -> None:
    parts = [part for part in message.split("...") if part.strip()]
    assert re.search(r"[^\n]{0,60}".join(re.escape(part) for part in parts), SOURCE), message


def test_there_are_messages() -> None:
    assert len(MESSAGES) >= 20
