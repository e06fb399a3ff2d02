"""The command line against a real server."""

import csv
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipchoir import Client
from clipchoir.cli import app
from clipchoir_server.triton import Triton
from tests.conftest import BIN, ROOT, SAMPLES, encoded, noise, run
from tests.support.command_line import pictures, rows, start
from tests.support.fake_triton import fake_triton

SCENES = ROOT / "demo" / "samples"


pytestmark = pytest.mark.usefixtures("commands_find_the_server")


def test_a_file_a_glob_a_list_and_a_folder_name_the_same_images(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 12)
    (tmp_path / "some" / "notes.txt").write_text("not an image")
    listed = "\n".join(map(str, paths)) + "\n\n"
    for arguments, standard_input in (
        ([str(tmp_path / "some")], None),
        ([str(tmp_path / "s*" / "*.png")], None),
        ([str(tmp_path / "**" / "image*")], None),
        (["-"], listed),
        ([str(path) for path in paths], None),
    ):
        result = run("clipchoir", "classify", *arguments, "--json", input=standard_input)
        assert result.returncode == 0, result.stderr
        sources = [json.loads(line)["source"] for line in result.stdout.splitlines()]
        assert sources == [str(path) for path in paths], arguments


def test_tar_shards(tmp_path: Path) -> None:
    """WebDataset's layout: files of one sample share a key."""
    shard = tmp_path / "train-000.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(7):
            for suffix, data in (("cls", b"3"), ("png", encoded(noise(number))), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    out = tmp_path / "out.jsonl"
    result = run("clipchoir", "classify", shard, "--out", out)
    assert result.returncode == 0, result.stderr
    assert [row["source"] for row in rows(out)] == [f"{shard}/{number:06}.png" for number in range(7)]
    with Client(os.environ["CLIPCHOIR_URL"]) as client:
        expected = client.classify([encoded(noise(number)) for number in range(7)])
    assert [row["label"] for row in rows(out)] == [each.label for each in expected]
    whole = shard.read_bytes()
    header = whole.index(b"000005.png")
    damaged = whole[:header] + b"\xff" * 512 + whole[header + 512 :]
    for content in (whole[: len(whole) // 2], whole[:header], damaged):
        shard.write_bytes(content)
        result = run("clipchoir", "classify", shard, "--json")
        assert result.returncode == 1
        assert "train-000.tar is not a whole tar file" in result.stderr
    assert "a damaged header, or no end (after 000005.cls)" in result.stderr


def test_own_classes_a_file_and_a_name_as_label_sets(tmp_path: Path) -> None:
    image = SAMPLES[0]
    pets = tmp_path / "pets.toml"
    pets.write_text('classes = ["cat", "dog"]\ntemplates = ["a photo of a {}."]\n')
    by_option = run(
        "clipchoir", "classify", image, "--class", "cat", "--class", "dog", "--template", "a photo of a {}.", "--json"
    )
    by_file = run("clipchoir", "classify", image, "--label-set", pets, "--json")
    assert by_option.returncode == by_file.returncode == 0, by_option.stderr + by_file.stderr
    assert json.loads(by_option.stdout)["scores"] == json.loads(by_file.stdout)["scores"]
    assert list(json.loads(by_file.stdout)["scores"]) == ["cat", "dog"]
    by_name = json.loads(run("clipchoir", "classify", image, "--label-set", "moods", "--json").stdout)
    assert list(by_name["scores"]) == ["a bright day", "night", "fog"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label-set", "scenes", "--class", "cat"], "either --label-set or --class"),
        (["--template", "a {}"], "--template belongs to --class"),
        (["--resume"], "go with --out"),
        (["--out", "x.txt"], "ends in none of .jsonl, .csv, .parquet"),
        (["--out", "x.jsonl", "--format", "table"], "a table is for reading"),
        (["--format", "parquet"], "--format parquet needs --out"),
        (["--json", "--format", "csv"], "--json contradicts csv"),
        (["--json", "--out", "x.csv"], "--json contradicts csv"),
        (["--out", "x.csv", "--resume", "--overwrite"], "either --resume or --overwrite"),
        (["--url", "http://localhost:8001"], "host:port"),
        (["--header", "nonsense"], "--header must be"),
        (["--tls-cert", "a.pem"], "both a certificate and its key"),
        (["--tls-ca", "absent.pem"], "No such file"),
        (["--compression", "zip"], "compression must be one of"),
        (["--priority", "4"], "--priority"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["classify", str(SAMPLES[0]), *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_every_format_holds_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    pictures(folder, 30)
    (folder / "image7.png").write_bytes(b"broken")
    outs = {suffix: tmp_path / f"out.{suffix}" for suffix in ("jsonl", "csv", "parquet")}
    for out in outs.values():
        failures = tmp_path / "failures.jsonl"
        result = run("clipchoir", "classify", folder, "--out", out, "--errors", failures)
        assert result.returncode == 3, result.stderr
        assert result.stdout == ""
        assert [row["source"] for row in rows(failures)] == [str(folder / "image7.png")]
    expected = rows(outs["jsonl"])
    with outs["csv"].open(newline="") as file:
        by_csv = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(outs["parquet"])
    assert json.loads(table.schema.metadata[b"classes"]) == list(expected[0]["scores"])
    for row, from_csv, from_parquet in zip(expected, by_csv, table.to_pylist(), strict=True):
        assert row["source"] == from_csv["source"] == from_parquet["source"]
        assert row.get("label", "") == from_csv["label"] == (from_parquet["label"] or "")
        assert row.get("error", "") == from_csv["error"] == (from_parquet["error"] or "")
        if "scores" in row:
            np.testing.assert_allclose(list(row["scores"].values()), from_parquet["scores"], atol=1e-6)
            np.testing.assert_allclose(
                list(row["encoder_scores"]["evaclip"].values()), from_parquet["evaclip_scores"], atol=1e-6
            )
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or "tmp" in path.name]


def test_a_server_that_is_away_changes_nothing(tmp_path: Path) -> None:
    pictures(tmp_path / "some", 3)
    (tmp_path / "out.jsonl.partial").write_text("rows of an interrupted run")
    for out in ("new.jsonl", "out.jsonl"):
        command = ["clipchoir", "classify", "some", "--out", out, "--url", "localhost:1", "--overwrite"]
        assert run(*command, cwd=tmp_path).returncode == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl.partial", "some"]


def test_file_names_that_are_no_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes(encoded(noise(1)))
    (folder / "empty.png").write_bytes(b"")
    for suffix in ("jsonl", "csv", "parquet"):
        assert run("clipchoir", "classify", folder, "--out", tmp_path / f"out.{suffix}").returncode == 3
    assert [Path(row["source"]).name for row in rows(tmp_path / "out.jsonl")] == [name, "empty.png"]
    assert b"caf\xe9.png" in (tmp_path / "out.csv").read_bytes()
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [Path(row["source"]).name for row in table] == ["caf?.png", "empty.png"]
    listed = subprocess.run(
        [BIN / "clipchoir", "classify", "-"],
        input=os.fsencode(folder / name) + b"\r\n",
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert b"caf?.png" in listed.stdout


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{BIN / 'clipchoir'} classify {SCENES} --json --batch-size 1 | head -1"
    result = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_progress_on_a_terminal_and_silence_in_a_pipe(tmp_path: Path) -> None:
    pictures(tmp_path / "some", 40)
    out = tmp_path / "out.jsonl"
    quiet = run("clipchoir", "classify", tmp_path / "some", "--out", out)
    assert quiet.stdout == quiet.stderr == ""
    shown = run(
        "clipchoir", "classify", tmp_path / "some", "--out", out, "--overwrite", env={**os.environ, "FORCE_COLOR": "1"}
    )
    assert "classifying" in shown.stderr
    assert "/40" in shown.stderr


def test_evaluate_sweeps_stored_embeddings(tmp_path: Path) -> None:
    store, plots = tmp_path / "embeddings", tmp_path / "plots"
    first = run(
        "clipchoir", "evaluate", SCENES, "--embeddings", store, "--sweep-weights", "3", "--sweep-drop-below", "0,0.5",
        "--plots", plots, "--json",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["images"] == 60
    sweeps = {(each["option"], each["value"]): each["accuracy"] for each in report["sweeps"]}
    assert sweeps.keys() == {
        ("weights", "0,1"), ("weights", "0.5,0.5"), ("weights", "1,0"), ("drop_below", "0"), ("drop_below", "0.5")
    }  # fmt: skip
    assert sweeps["weights", "1,0"] == report["encoder_accuracy"]["metaclip"]
    assert sweeps["weights", "0,1"] == report["encoder_accuracy"]["evaclip"]
    assert sweeps["weights", "0.5,0.5"] == report["accuracy"]
    for name in ("confusion", "reliability", "sweep_weights", "sweep_drop_below"):
        with Image.open(plots / f"{name}.png") as plot:
            assert min(plot.size) > 300
    again = run("clipchoir", "evaluate", "--embeddings", store, "--json", "--weights", "0,1")
    assert json.loads(again.stdout)["accuracy"] == report["encoder_accuracy"]["evaclip"]
    people = run("clipchoir", "evaluate", "--embeddings", store, "--sweep-weights", "3")
    for expected in ("Confusion matrix", "Reliability", "calibration error", "Sweeps", "best", "encoders agree on"):
        assert expected in people.stdout


def test_evaluate_is_certain_of_the_classes(tmp_path: Path) -> None:
    store = tmp_path / "store"
    deep = tmp_path / "deep" / "Sea" / "2020"
    pictures(deep, 1)
    refused = run("clipchoir", "evaluate", tmp_path / "deep")
    assert refused.returncode == 1
    assert "lies deeper than" in refused.stderr
    pictures(tmp_path / "one" / "Sea", 2)
    pictures(tmp_path / "other" / "Sea", 3)
    assert run("clipchoir", "evaluate", tmp_path / "one", "--embeddings", store).returncode == 0
    mixed = run("clipchoir", "evaluate", tmp_path / "other", "--embeddings", store)
    assert mixed.returncode == 1
    assert "is not of the images in this folder" in mixed.stderr


def test_evaluate_counts_by_hand() -> None:
    """Agreement, precision, recall and calibration, written out again from the scores of every image."""
    report = json.loads(run("clipchoir", "evaluate", SCENES, "--json").stdout)
    with Client(os.environ["CLIPCHOIR_URL"]) as client:
        results = client.classify(SAMPLES)
    truths = [path.parent.name for path in SAMPLES]
    labels = [result.label for result in results]
    best = [[result.classes[scores.argmax()] for scores in result.encoder_scores.values()] for result in results]
    agreed = [set(each) == {label} for each, label in zip(best, labels, strict=True)]
    assert report["agreement"] == pytest.approx(np.mean(agreed))
    for row in report["per_class"]:
        name = row["class"]
        hits = sum(truth == label == name for truth, label in zip(truths, labels, strict=True))
        assert row["images"] == truths.count(name)
        assert row["recall"] == pytest.approx(hits / truths.count(name))
        assert row["precision"] == pytest.approx(hits / labels.count(name))
    gaps = []
    for low in np.arange(0, 1, 0.1):
        of_bin = [
            (result.score, result.label == truth)
            for result, truth in zip(results, truths, strict=True)
            if low <= result.score < low + 0.1 or (result.score >= 1 and low > 0.85)
        ]
        if of_bin:
            scores, right = zip(*of_bin, strict=True)
            gaps.append(abs(np.mean(scores) - np.mean(right)) * len(of_bin))
    assert report["calibration_error"] == pytest.approx(sum(gaps) / len(results), abs=0.01)


def test_submit_writes_numbers_of_classes_in_natural_order(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 12)
    with Client(os.environ["CLIPCHOIR_URL"]) as client:
        results = client.classify(paths)
    out = tmp_path / "submission.csv"
    result = run("clipchoir", "submit", tmp_path / "some", "--out", out)
    assert result.returncode == 0, result.stderr
    lines = out.read_text().splitlines()
    assert lines[0] == "id_idx,label"
    assert lines[1:] == [f"{number},{each.classes.index(each.label)}" for number, each in enumerate(results)]
    assert run("clipchoir", "submit", tmp_path / "some", "--out", out, "--names").returncode == 0
    assert out.read_text().splitlines()[1] == f"0,{results[0].label}"
    before = out.read_bytes()
    paths[2].write_bytes(b"broken")
    failed = run("clipchoir", "submit", tmp_path / "some", "--out", out)
    assert failed.returncode == 3
    assert "1 images have no label" in failed.stderr
    assert out.read_bytes() == before


def test_labels(tmp_path: Path) -> None:
    listed = json.loads(run("clipchoir", "labels", "list", "--json").stdout)
    assert listed["label_sets"]["scenes"] == {"classes": 6, "prompts": 312}
    assert "moods" in run("clipchoir", "labels", "list").stdout
    shown = run("clipchoir", "labels", "show", "moods")
    assert "night (4)" in shown.stdout
    assert "stars above" in shown.stdout
    assert json.loads(run("clipchoir", "labels", "show", "moods", "--json").stdout)["classes"][2] == "fog"
    absent = run("clipchoir", "labels", "show", "pets")
    assert absent.returncode == 1
    assert 'label set "pets" is not in this repository' in absent.stderr
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('classes = ["a lion", "a sea"]\n')
    bad.write_text('classes = ["a lion", "a sea"]\ntemplates = ["no"]\n')
    assert "is good: 2 classes, 2 prompts, will be embedded" in run("clipchoir", "labels", "check", good).stdout
    refused = run("clipchoir", "labels", "check", bad)
    assert refused.returncode == 1
    assert 'template "no" has no "{}"' in refused.stderr
    tried = run("clipchoir", "labels", "try", good, SAMPLES[0], SAMPLES[1])
    assert "a lion" in tried.stdout
    assert "a sea" in tried.stdout
    assert "embedded already" in run("clipchoir", "labels", "check", good).stdout


def test_status_and_top(server: Triton) -> None:
    result = run("clipchoir", "status", "--seconds", "0.2")
    assert result.returncode == 0, result.stderr
    for expected in (server.address.grpc, "ready", "metaclip, evaclip", "preprocess", "images/s now"):
        assert expected in result.stdout
    (status,) = json.loads(run("clipchoir", "status", "--json").stdout)
    assert status["service"]["encoders"] == ["metaclip", "evaclip"]
    assert "images_per_second" in status
    away = run("clipchoir", "status", "--url", "localhost:1")
    assert away.returncode == 4
    watch = start(
        "clipchoir", "top", "--metrics-url", f"http://{server.address.metrics}/metrics", "--json",
        "--interval", "2", "--count", "1",
    )  # fmt: skip
    with Client(server.address.grpc) as client:
        while watch.poll() is None:  # whenever it looks, there is something to see
            client.classify(SAMPLES)
    stdout, stderr = watch.communicate(timeout=30)
    (look,) = [json.loads(line) for line in stdout.splitlines()]
    assert look["images_per_second"] > 5, stderr
    assert 0 < look["agreement"] <= 1
    assert look["models"]["metaclip"]["compute_ms"] > 0
    assert look["predictions_per_second"].keys() <= {path.parent.name for path in SAMPLES}
    assert sum(look["predictions_per_second"].values()) > 5
    table = run(
        "clipchoir",
        "top",
        "--metrics-url",
        f"http://{server.address.metrics}/metrics",
        "--count",
        "1",
        "--interval",
        "0.2",
    )
    assert "images/s" in table.stdout
    nowhere = run("clipchoir", "top", "--metrics-url", "http://localhost:1/metrics", "--count", "1")
    assert nowhere.returncode == 4
    assert "--metrics-url" in nowhere.stderr
    wrong = run("clipchoir", "top", "--metrics-url", f"http://{server.address.http}/v2", "--count", "1")
    assert wrong.returncode == 1
    assert "metrics" in wrong.stderr


def test_token_and_headers_are_sent(tmp_path: Path) -> None:
    with fake_triton() as fake:
        (image,) = pictures(tmp_path, 1)
        result = run(
            "clipchoir", "classify", image, "--url", fake.url, "--header", "X-Team: a: b", "--json",
            env={**os.environ, "CLIPCHOIR_TOKEN": "secret"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert fake.metadata[0]["authorization"] == "Bearer secret"
        assert fake.metadata[0]["x-team"] == "a: b"


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("pyarrow", ["classify", "IMAGE", "--out", "x.parquet"], "parquet"),
        ("pyarrow", ["embed", "IMAGE", "--out", "x.parquet"], "parquet"),
        ("matplotlib", ["evaluate", "FOLDER", "--plots", "x"], "plots"),
    ],
)
def test_a_command_says_which_extra_it_needs(tmp_path: Path, module: str, command: list[str], extra: str) -> None:
    names = {"IMAGE": str(SAMPLES[0]), "FOLDER": str(SCENES)}
    arguments = [names.get(word, word) for word in command]
    script = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['clipchoir', *{arguments!r}]; "
        "from clipchoir.cli import main; main()"
    )
    result = run("python", "-c", script, cwd=tmp_path)
    assert result.returncode == 1
    assert f"pip install 'clipchoir[{extra}]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_every_command_has_json_and_says_what_it_does() -> None:
    def help_of(*command: str) -> str:
        return CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).stdout

    text = help_of()
    assert "Exit codes: 0 all well, 1 failed, 2 wrong usage" in " ".join(text.split())
    commands = [["classify"], ["embed"], ["evaluate"], ["submit"], ["status"], ["top"]]
    commands += [["labels", each] for each in ("list", "show", "check", "try")]
    for command in commands:
        assert "--json" in help_of(*command), command
