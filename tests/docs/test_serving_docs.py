"""docs/serving.md says what the code says."""

import json
import re
import subprocess

from pydantic.fields import FieldInfo

from clipchoir_export.spec import ServingSpec
from tests.conftest import BIN, ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text()


def row(name: str, field: FieldInfo) -> str:
    default = "" if field.default is None else f"`{json.dumps(field.default)}`"
    return f"| `{name}` | {default} | {field.description} |"


def test_the_page_shows_every_key_with_its_default_and_reason() -> None:
    rows = [row(name, field) for name, field in ServingSpec.model_fields.items()]
    table = "\n".join(["| key | default | what it is, and why |", "| --- | --- | --- |", *rows])
    assert f"\n\n{table}\n\n" in PAGE, f"put this table into docs/serving.md:\n{table}"


def test_the_page_shows_every_option_of_the_launcher_with_its_default() -> None:
    text = subprocess.run(
        [BIN / "clipchoir-server", "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "250"}
    ).stdout
    options = {
        name: default
        for name, default in re.findall(r"(--[a-z-]+)[^\n]*?(?:\[default: (\S+?)\])?[ │]*\n", text)
        if name not in ("--help", "--version")
    }
    assert len(options) >= 9
    for name, default in options.items():
        (line,) = re.findall(rf"^\| .*`{name}`.*$", PAGE, re.MULTILINE)
        assert default.removesuffix(".0") in line
