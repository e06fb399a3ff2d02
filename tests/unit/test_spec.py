"""Ensemble specs: what is accepted, and what the errors of wrong ones say."""

import subprocess
import sys
from pathlib import Path

import pytest

from clipchoir_export.errors import SpecError
from clipchoir_export.spec import find_ensemble, load_ensemble, load_label_set
from tests.conftest import ROOT, run

SHIPPED = sorted((ROOT / "export" / "ensembles").glob("*.toml"))
GOOD = """
name = "mine"
label_sets = ["scenes"]

[[encoders]]
name = "first"
source = "open_clip"
checkpoint = "builtin:demo-metaclip"
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_spec_parses_and_is_found_by_name(path: Path) -> None:
    spec = load_ensemble(find_ensemble(path.stem))
    assert spec.name == path.stem
    assert load_label_set(spec.label_sets[0], path).classes


def test_the_real_pair_has_the_winners_recipe() -> None:
    spec = load_ensemble(find_ensemble("scenes"))
    recipe = [
        (encoder.architecture, encoder.checkpoint, encoder.sharpness, encoder.weight) for encoder in spec.encoders
    ]
    assert recipe == [
        ("ViT-bigG-14-quickgelu", "metaclip_fullcc", 2.3, 0.5),
        ("EVA-CLIP-18B", "BAAI/EVA-CLIP-18B", 2.0, 0.5),
    ]
    assert spec.scoring == {"logit_scale": 100, "drop_below": 0, "aggregate": "softmax_mean"}


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ('source = "open_clip"', 'source = "clip"', ["encoders.0.source", "there are eva_clip, open_clip", "'clip'"]),
        ('source = "open_clip"\n', "", ["encoders.0.source: is missing"]),
        (
            "checkpoint =",
            "chekpoint =",
            ["encoders.0.chekpoint: unknown key", "checkpoint, licence, imagenet_top1, sharpness, weight"],
        ),
        ('name = "mine"', 'name = "mine"\nfoo = 1', ["foo: unknown key", "label_sets, logit_scale"]),
        ('name = "first"', 'name = "zero_shot"', ['cannot be named "zero_shot"']),
        ('name = "first"', 'name = "status"', ['cannot be named "status"']),
        ('label_sets = ["scenes"]', 'label_sets = ["../etc"]', ["label_sets.0", "pattern", "'../etc'"]),
        ('name = "first"', 'name = "First one"', ["encoders.0.name", "pattern"]),
        ('name = "first"', 'name = "first"\nweight = -1', ["encoders.0.weight", "greater than or equal to 0", "-1"]),
        ('name = "first"', 'name = "first"\nweight = 0', ["every encoder has weight 0"]),
        (
            'name = "first"',
            'name = "first"\nprecision = "int4"',
            ["encoders.0.precision", "'fp32', 'fp16', 'bf16' or 'int8'"],
        ),
        ('name = "mine"', 'name = "mine"\ndrop_below = 1.5', ["drop_below", "less than 1"]),
        ('label_sets = ["scenes"]', "label_sets = []", ["label_sets", "at least 1"]),
        ('name = "mine"', "name = mine", ["is not valid TOML"]),
        ("[[encoders]]", "[serving]\nbatch = 3\n[[encoders]]", ["serving.batch: unknown key", "max_batch_size"]),
        ("[[encoders]]", "[serving]\ndefault_priority = 4\n[[encoders]]", ["serving: ", "one of 1 to 3"]),
        ("[[encoders]]", "[serving]\ngpus = []\n[[encoders]]", ["serving.gpus", "at least 1"]),
        (
            "[[encoders]]",
            "[serving]\nwarmup_batch_sizes = [0]\n[[encoders]]",
            ["serving.warmup_batch_sizes.0", "(got 0)"],
        ),
        (
            "[[encoders]]",
            "[serving]\nencoder_gpus = { second = [1] }\n[[encoders]]",
            ["serving.encoder_gpus names second; the encoders are first"],
        ),
    ],
)
def test_a_wrong_spec_names_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, messages: list[str]
) -> None:
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        load_ensemble(path)
    for message in [str(path), *messages]:
        assert message in str(caught.value)


def test_the_good_spec_of_this_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    assert load_ensemble(tmp_path / "mine.toml").encoders[0].sharpness == 1.0


def test_two_encoders_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD + GOOD[GOOD.index("[[") :])
    with pytest.raises(SpecError, match='two encoders are named "first"'):
        load_ensemble(tmp_path / "mine.toml")


def test_an_unknown_label_set_is_named_with_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r'"pets" is neither .*label_sets/pets\.toml'):
        load_label_set("pets", tmp_path / "ensembles" / "mine.toml")


def test_the_command_prints_the_error_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD.replace("open_clip", "clip"))
    for spec, message in (
        ("mine.toml", "encoders.0.source"),
        ("absent.toml", "No such file"),
        ("nothing", "demo, large, scenes, scenes-8b"),
    ):
        result = run("clipchoir-export", "build", spec, cwd=tmp_path)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_spec_is_checked_without_torch() -> None:
    code = "import sys, clipchoir_export.spec as spec; spec.load_ensemble(spec.find_ensemble('scenes')); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
