"""The tables of docs/preprocess.md say what the code does."""

import re

from clipchoir_export.spec import ServingSpec
from clipchoir_steps import metrics
from clipchoir_steps.preprocess import limits
from clipchoir_steps.preprocess.decode import ErrorKind
from clipchoir_steps.preprocess.settings import Settings
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "preprocess.md").read_text()
DEFERRED = ROOT / "steps" / "clipchoir_steps" / "deferred.py"
STEP = ROOT / "model_repository" / "preprocess"


def table(head: str) -> dict[str, str]:
    """First two columns of the table with this first column."""
    rows = re.search(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert rows
    return dict(re.findall(r"^\| `(.+?)` \| (.*?) \|", rows[1], re.MULTILINE))


def test_every_setting_is_there_with_its_default_and_the_step_reads_it() -> None:
    settings = table("key")
    defaults = ServingSpec().model_dump()
    assert settings == {key: str(defaults[key]).lower() for key in settings}
    rendered = dict(re.findall(r'key: "(\w+)" value { string_value: "(\w+)"', (STEP / "config.pbtxt").read_text()))
    built = {"pixels_digest": "224=d34f9fff972f1110", "pixels_made_by": "Pillow 12.3.0"}
    assert settings.keys() | built.keys() == rendered.keys()
    assert settings == {key: rendered[key] for key in settings}
    Settings.parse(rendered | built)


def test_the_fixed_limits_are_the_codes() -> None:
    scans, cover = re.search(r"at most (\d+) scans.*?at most (\d+) times", TEXT, re.DOTALL).groups()  # type: ignore[union-attr]
    assert (int(scans), int(cover)) == (limits.MAX_SCANS, limits.MAX_COVER)


def test_every_kind_of_error_is_there() -> None:
    assert list(table("kind")) == [kind.value for kind in ErrorKind]


def test_the_counters_and_events_are_the_codes() -> None:
    source = (ROOT / "steps" / "clipchoir_steps" / "preprocess" / "step.py").read_text()
    named = set(re.findall(r"`(clipchoir_\w+_total)\{", TEXT))
    used = re.findall(r"self\.metrics\.add\((\w+)", source)
    assert named == {getattr(metrics, family).name for family in used}
    events = set(re.findall(r"^- `(\w+)` \((?:error|info)\)", TEXT, re.MULTILINE))
    assert events == set(re.findall(r'\.(?:info|warn|error)\(\s*"(\w+)"', source + DEFERRED.read_text()))
