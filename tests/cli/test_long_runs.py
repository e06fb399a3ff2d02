"""Long runs of the command line: interrupted, gone on with, and kept apart from one another."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from clipchoir import Client, ClipchoirError
from tests.conftest import SAMPLES, encoded, noise, run
from tests.support.command_line import pictures, rows, start, wait_for_rows
from tests.support.fake_triton import CLASSES, answer, fake_triton
from tests.support.launcher import Launched, launched

pytestmark = pytest.mark.usefixtures("commands_find_the_server")


@pytest.fixture(scope="module")
def launcher(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A server for tests that kill clients: Triton before 24.12 may die of that, and the launcher starts it again."""
    with launched(repository, tmp_path_factory.mktemp("launched"), "--restarts", "100") as server:
        yield server


@pytest.fixture
def own(launcher: Launched, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Client]:
    """Commands go to that server; the fixture is a client of it, once it answers."""
    monkeypatch.setenv("CLIPCHOIR_URL", launcher.grpc)

    def answering() -> Client:
        until = time.monotonic() + 60
        while True:
            client = Client(launcher.grpc)
            try:
                client.classify(SAMPLES[:1])
            except ClipchoirError:
                assert time.monotonic() < until
                client.close()
                time.sleep(0.5)
            else:
                return client

    return answering


def test_results_are_not_lost_by_chance(tmp_path: Path) -> None:
    pictures(tmp_path / "some", 3)
    out = tmp_path / "out.jsonl"
    command: list[str | Path] = ["clipchoir", "classify", tmp_path / "some", "--out", out]
    assert run(*command).returncode == 0
    before = out.read_bytes()
    again = run(*command)
    assert again.returncode == 1
    assert "exists; --overwrite replaces it" in again.stderr
    resumed = run(*command, "--resume")
    assert resumed.returncode == 0
    assert "is complete" in resumed.stderr
    assert out.read_bytes() == before
    out.write_text("other")
    assert run(*command, "--overwrite").returncode == 0
    assert out.read_bytes() == before


def test_an_interrupted_overwrite_is_gone_on_with_and_replaces_in_the_end(
    own: Callable[[], Client], tmp_path: Path
) -> None:
    paths = pictures(tmp_path / "some", 40)
    own().close()
    out = tmp_path / "out.jsonl"
    command: list[str | Path] = ["clipchoir", "classify", tmp_path / "some", "--out", out]
    assert run(*command).returncode == 0
    before = rows(out)
    process = start(
        "clipchoir", "classify", "-", *command[3:], "--weights", "1,0", "--overwrite", "--batch-size", "1", images=paths
    )
    wait_for_rows(tmp_path / "out.jsonl.partial", 16)
    process.kill()
    process.communicate()
    assert rows(out) == before
    own().close()
    resumed = run(*command, "--weights", "1,0", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for row, earlier in zip(rows(out), before, strict=True):
        assert row["source"] == earlier["source"]
        alone = earlier["encoder_scores"]["metaclip"]
        assert row["scores"] == pytest.approx(alone, abs=1e-5)  # another batch size


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_gone_on_with(own: Callable[[], Client], tmp_path: Path, how: signal.Signals) -> None:
    paths = pictures(tmp_path / "some", 250)
    (tmp_path / "some" / "image200.png").write_bytes(b"broken")
    (tmp_path / "some" / "image3.png").write_bytes(b"broken")
    out, partial, failures = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial", tmp_path / "failures.jsonl"
    options: list[str | Path] = ["--out", out, "--errors", failures, "--batch-size", "4"]
    command: list[str | Path] = ["clipchoir", "classify", tmp_path / "some", *options]
    process = start("clipchoir", "classify", "-", *options, images=paths[:100])
    wait_for_rows(partial, 40)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "--resume" in stderr
        assert "Traceback" not in stderr
    assert not out.exists()
    with partial.open("ab") as file:
        file.write(b'{"source": "half a r')
    client = own()
    refused = run(*command)
    assert refused.returncode == 1
    assert "--resume goes on with it" in refused.stderr
    other = run(*command, "--resume", "--weights", "1,0")
    assert other.returncode == 1
    assert "were made with" in other.stderr
    resumed = run(*command, "--resume")
    assert resumed.returncode == 3, resumed.stderr
    assert [row["source"] for row in rows(out)] == [str(path) for path in paths]
    with client:
        expected = client.classify(paths)
    assert [row.get("label", "") for row in rows(out)] == [each.label for each in expected]
    assert [Path(row["source"]).name for row in rows(failures)] == ["image3.png", "image200.png"]
    assert not partial.exists()


def test_a_run_on_other_images_is_not_gone_on_with(own: Callable[[], Client], tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 200)
    out = tmp_path / "out.csv"
    process = start("clipchoir", "classify", "-", "--out", out, "--batch-size", "2", images=paths[:60])
    wait_for_rows(tmp_path / "out.csv.partial", 16)
    process.kill()
    process.communicate()
    own().close()
    paths[3].unlink()
    result = run("clipchoir", "classify", tmp_path / "some", "--out", out, "--resume")
    assert result.returncode == 1
    assert "row 4 of" in result.stderr
    assert "image3.png, but the image in its place is now" in result.stderr
    paths[3].write_bytes(encoded(noise(3, (64, 48))))
    assert run("clipchoir", "classify", tmp_path / "some", "--out", out, "--resume").returncode == 0
    assert len(out.read_text().splitlines()) == 201


def test_a_server_that_stays_away_ends_a_run_that_can_be_gone_on_with(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 60)
    out = tmp_path / "out.jsonl"
    command: list[str | Path] = [
        "clipchoir",
        "classify",
        tmp_path / "some",
        "--out",
        out,
        "--batch-size",
        "2",
        "--patience",
        "0.5",
    ]
    served = 0

    def dies(request: Any, context: Any) -> Any:
        nonlocal served
        served += 1
        if served > 8:
            context.abort(14, "Socket closed")  # never reached: grpc wants its own enumeration
        return answer(request)

    with contextlib.suppress(AssertionError), fake_triton(dies) as fake:
        first = run(*command, "--url", fake.url)
    assert first.returncode in (1, 4)
    assert "Traceback" not in first.stderr
    partial = tmp_path / "out.jsonl.partial"
    assert 0 < len(rows(partial)) < 60
    with fake_triton() as fake:
        assert run(*command, "--url", fake.url, "--resume").returncode == 0
    assert [row["source"] for row in rows(out)] == [str(path) for path in paths]


def test_embed_writes_arrays_and_resumes(own: Callable[[], Client], tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 200)
    paths[5].write_bytes(b"broken")
    out = tmp_path / "embeddings"
    command: list[str | Path] = ["clipchoir", "embed", tmp_path / "some", "--out", out, "--batch-size", "4"]
    process = start("clipchoir", "embed", "-", *command[3:], images=paths[:180])
    wait_for_rows(tmp_path / "embeddings.partial" / "rows.jsonl", 1)
    process.kill()
    process.communicate()
    client = own()
    assert not out.exists()
    assert "--resume goes on with it" in run(*command).stderr
    result = run(*command, "--resume", "--json")
    assert result.returncode == 3, result.stderr
    assert json.loads(result.stdout) == {
        "out": str(out),
        "images": 200,
        "failed": 1,
        "dims": {"metaclip": 64, "evaclip": 96},
    }
    named = rows(out / "rows.jsonl")
    assert [row["source"] for row in named] == [str(path) for path in paths]
    assert [number for number, row in enumerate(named) if "error" in row] == [5]
    with client:
        expected = list(client.embed(paths))
    for encoder in ("metaclip", "evaclip"):
        values = np.load(out / f"{encoder}.npy")
        assert values.dtype == np.float32
        assert np.isnan(values[5]).all()
        for number in (0, 4, 6, 199):
            np.testing.assert_allclose(values[number], expected[number].embedding[encoder], atol=1e-5)
    parquet = tmp_path / "embeddings.parquet"
    assert run("clipchoir", "embed", *paths[:10], "--out", parquet).returncode == 3
    table = pyarrow.parquet.read_table(parquet).to_pylist()
    np.testing.assert_allclose(table[9]["evaclip"], expected[9].embedding["evaclip"], atol=1e-5)
    assert table[5]["evaclip"] is None
    assert table[5]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings", "embeddings.parquet", "some"]


def test_an_interrupted_conversion_of_embeddings_is_finished(tmp_path: Path) -> None:
    pictures(tmp_path / "some", 5)
    assert run("clipchoir", "embed", tmp_path / "some", "--out", tmp_path / "x.parquet.rows").returncode == 0
    out = tmp_path / "x.parquet"
    assert "exists" in run("clipchoir", "embed", tmp_path / "some", "--out", out).stderr
    assert run("clipchoir", "embed", tmp_path / "some", "--out", out, "--resume").returncode == 0
    assert pyarrow.parquet.read_table(out).num_rows == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some", "x.parquet"]


def test_a_store_that_was_killed_before_it_got_its_name_is_whole(tmp_path: Path) -> None:
    pictures(tmp_path / "some", 5)
    out = tmp_path / "x"
    command: list[str | Path] = ["clipchoir", "embed", tmp_path / "some", "--out", out]
    assert run(*command).returncode == 0
    before = np.load(out / "evaclip.npy")
    out.rename(tmp_path / "x.partial")
    assert run(*command, "--resume").returncode == 0
    np.testing.assert_array_equal(np.load(out / "evaclip.npy"), before)
    assert run(*command, "--overwrite").returncode == 0
    assert not (tmp_path / "x.old").exists()


def test_embeddings_by_other_encoders_are_not_mixed_or_scored(tmp_path: Path) -> None:
    pictures(tmp_path / "some" / "Sea", 3)
    out = tmp_path / "x"
    embed: list[str | Path] = ["clipchoir", "embed", tmp_path / "some", "--out", out]
    evaluate: list[str | Path] = ["clipchoir", "evaluate", "--embeddings", out]
    assert run(*embed).returncode == 0
    assert run(*evaluate).returncode == 0

    made_by = json.loads((out / "encoders.json").read_text())
    assert made_by.keys() == {"metaclip", "evaclip"}
    (out / "encoders.json").write_text(json.dumps({**made_by, "evaclip": "0123"}))
    for command in (evaluate, [*embed, "--resume"]):
        refused = run(*command)
        assert refused.returncode == 1
        assert f"{out} holds embeddings by another evaclip (0123) than the server's" in refused.stderr
    before = (out / "rows.jsonl").read_bytes()
    out.rename(tmp_path / "x.partial")
    refused = run(*embed, "--resume")
    assert f"{out}.partial holds embeddings by another evaclip" in refused.stderr
    assert (tmp_path / "x.partial" / "rows.jsonl").read_bytes() == before

    (tmp_path / "x.partial" / "encoders.json").write_text("{")
    assert "encoders.json cannot be read" in run(*embed, "--resume").stderr
    assert run(*embed, "--overwrite").returncode == 0
    assert json.loads((out / "encoders.json").read_text()) == made_by
    (out / "encoders.json").unlink()
    assert run(*evaluate).returncode == 0  # made by something else than `clipchoir embed`


@pytest.mark.parametrize("command", ["classify", "embed"])
def test_a_run_ends_where_the_servers_repository_changes(tmp_path: Path, command: str) -> None:
    paths = pictures(tmp_path / "some", 60)
    out = tmp_path / ("out.jsonl" if command == "classify" else "out")
    kept = tmp_path / "out.jsonl.partial" if command == "classify" else tmp_path / "out.partial" / "rows.jsonl"
    run_: list[str | Path] = ["clipchoir", command, tmp_path / "some", "--out", out, "--batch-size", "1"]
    answered = 0

    def slowly(request: Any, _: Any) -> Any:
        nonlocal answered
        answered += 1
        if answered == 40:  # as if another server had taken the place of this one
            time.sleep(2.5)  # several looks
            fake.version = "two"
        return answer(request)

    with fake_triton(slowly) as fake:
        first = run(*run_, "--url", fake.url)
        assert first.returncode == 1
        assert f"{fake.url} serves version two of the repository, and the run began with one" in first.stderr
        certain = rows(kept)
        assert 0 < len(certain) < 40
        assert [row["source"] for row in certain] == [str(path) for path in paths[: len(certain)]]
        resumed = run(*run_, "--url", fake.url, "--resume")
        if command == "classify":
            assert "now" in resumed.stderr
            assert '"repository": "two"' in resumed.stderr
            fake.version = "one"
            resumed = run(*run_, "--url", fake.url, "--resume")
        assert resumed.returncode == 0, resumed.stderr  # embeddings are the same as long as the encoders are
    assert [row["source"] for row in rows(out if command == "classify" else out / "rows.jsonl")] == list(
        map(str, paths)
    )


def test_servers_of_two_versions_are_noticed_at_the_end_at_the_latest(tmp_path: Path) -> None:
    pictures(tmp_path / "some", 8)
    out = tmp_path / "out.jsonl"
    with fake_triton() as one, fake_triton() as other:
        other.version = "two"
        urls = ["--url", one.url, "--url", other.url]
        result = run("clipchoir", "classify", tmp_path / "some", "--out", out, *urls)
    assert result.returncode == 1
    assert f"{other.url} serves version two" in result.stderr
    assert not out.exists()


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 3)
    lists = {"classify": tmp_path / "out.jsonl.partial", "embed": tmp_path / "out.partial" / "rows.jsonl"}
    for command, partial in lists.items():
        out = tmp_path / ("out.jsonl" if command == "classify" else "out")
        arguments: list[str | Path] = ["clipchoir", command, "-", "--out", out, "--batch-size", "1"]
        first = start(*arguments, images=paths[:1])
        wait_for_rows(partial, 0)
        for choice in ("--resume", "--overwrite"):
            refused = run("clipchoir", command, *paths, "--out", out, choice)
            assert refused.returncode == 1, refused.stderr
            assert f"another run is writing {partial}" in refused.stderr
        _, stderr = first.communicate("\n".join(map(str, paths[1:])) + "\n", timeout=60)
        assert first.returncode == 0, stderr
        assert len(rows(out if command == "classify" else out / "rows.jsonl")) == 3


def test_a_label_set_that_was_changed_in_its_place_is_not_gone_on_with(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "some", 40)
    out = tmp_path / "out.jsonl"
    options: list[str | Path] = ["--out", out, "--batch-size", "1"]
    with fake_triton() as fake:
        first = start("clipchoir", "classify", "-", *options, "--url", fake.url, images=paths)
        wait_for_rows(tmp_path / "out.jsonl.partial", 16)
        first.kill()
        first.communicate()
        command: list[str | Path] = ["clipchoir", "classify", tmp_path / "some", *options, "--url", fake.url]
        fake.classes = (*CLASSES, "d")
        refused = run(*command, "--resume")
        assert refused.returncode == 1
        assert "label_set_sha256" in refused.stderr
        fake.classes = CLASSES
        assert run(*command, "--resume").returncode == 0
    assert len(rows(out)) == 40
