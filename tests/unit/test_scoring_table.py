"""The table of the scoring parameters is all that specs and configs know of them."""

import os
import subprocess
import sys
from pathlib import Path

import clipchoir_steps
from clipchoir_export.spec import EnsembleSpec
from clipchoir_steps.scoring.options import DEFAULTS, PARAMETERS, Scoring

TOY = '    toy: float = _number(0.5, "A toy.", ge=0, le=1)\n'
RENDER = """
from pathlib import Path
from pydantic import ValidationError
from clipchoir_export.configs import render_configs
from clipchoir_export.families.towers import Architecture
from clipchoir_export.spec import EnsembleSpec
table = {"name": "one", "label_sets": ["scenes"], "encoders": [{"name": "a", "source": "open_clip", "checkpoint": "b"}]}
for toy in ({}, {"toy": 0.25}):
    spec = EnsembleSpec.model_validate(table | toy)
    configs = render_configs(spec, {"a": Architecture(224, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))})
    print(next(line for line in configs[Path("ensembling/config.pbtxt")].splitlines() if '"toy"' in line).strip())
try:
    EnsembleSpec.model_validate(table | {"toy": 2})
except ValidationError as error:
    print(error.errors()[0]["msg"])
import clipchoir._options
print(clipchoir._options.split({"toy": 0.25}))
from typer.testing import CliRunner
from clipchoir.cli import app
print("--toy" in CliRunner(env={"COLUMNS": "200"}).invoke(app, ["classify", "-h"]).stdout)
"""


def test_the_spec_has_every_parameter_that_is_not_an_encoders() -> None:
    assert PARAMETERS.keys() - DEFAULTS.keys() == {"weights"}
    for name, default in DEFAULTS.items():
        assert EnsembleSpec.model_fields[name].default == default == getattr(Scoring((1.0,)), name)
        assert EnsembleSpec.model_fields[name].description == PARAMETERS[name].help


def test_a_new_parameter_is_one_entry_of_the_table(tmp_path: Path) -> None:
    package = Path(clipchoir_steps.__file__).parent
    for path in package.rglob("*.py"):
        copy = tmp_path / path.relative_to(package.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text()
        if path.name == "options.py":
            before, marker, after = text.partition("    drop_below: float = ")
            assert marker
            text = before + TOY + marker + after
        copy.write_text(text)
    shown = subprocess.run(
        [sys.executable, "-c", RENDER],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.splitlines() == [
        '{ key: "toy" value { string_value: "0.5" } },',
        '{ key: "toy" value { string_value: "0.25" } },',
        "Input should be less than or equal to 1",
        "(None, {'toy': '0.25'})",
        "True",
    ], shown.stderr
