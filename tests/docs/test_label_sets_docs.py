"""docs/label_sets.md says what the code says."""

import json
import re

from clipchoir_export.spec import RequestLabelSetsSpec
from clipchoir_steps.label_sets import resolver, spec
from clipchoir_steps.scoring import options
from tests.conftest import ROOT, run

PAGE = (ROOT / "docs" / "label_sets.md").read_text()
STEPS = ROOT / "steps" / "clipchoir_steps"


def first_column(head: str) -> list[str]:
    rows = re.search(rf"^\| {head} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert rows
    return re.findall(r"^\| `(.+?)` \|", rows[1], re.MULTILINE)


def test_every_request_parameter_is_there() -> None:
    assert sorted(first_column("parameter")) == sorted(options.NAMES)
    for aggregate in (options.SOFTMAX_MEAN, options.MEAN_EMBEDDING):
        assert f"`{aggregate}`: " in PAGE


def test_every_limit_is_there_with_its_default_and_reason() -> None:
    rows = [
        f"| `{name}` | `{json.dumps(field.default)}` | {field.description} |"
        for name, field in RequestLabelSetsSpec.model_fields.items()
    ]
    table = "\n".join(["| key | default | what it is, and why |", "| --- | --- | --- |", *rows])
    assert f"\n\n{table}\n\n" in PAGE, f"put this table into docs/label_sets.md:\n{table}"
    assert f"at most {resolver._MOST_WAITING} new sets wait" in PAGE


def test_every_error_code_is_there() -> None:
    codes = set(re.findall(r'Error: "([A-Z_]+)",', (STEPS / "scoring" / "step.py").read_text()))
    grpc = {"INVALID_ARG": "INVALID_ARGUMENT", "UNSUPPORTED": "UNIMPLEMENTED"}
    assert {grpc.get(code, code) for code in codes} == set(first_column("gRPC"))


def test_the_example_is_a_label_set() -> None:
    example = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]
    limits = spec.Limits(10, 10, 1000)
    assert spec.LabelSet.parse_json("example", example.encode(), limits).prompt_counts() == [3, 2]


def test_the_options_of_embed_exist() -> None:
    text = run("clipchoir-export", "embed", "--help", env={"COLUMNS": "200"}).stdout
    for option in re.findall(r"--[a-z-]+", re.findall(r"clipchoir-export embed.*", PAGE)[0]):
        assert option in text
