"""The soak in short: many clients, mixed requests, every answer as it is alone. `make soak` runs for minutes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipchoir_server.triton import Triton
from tests.conftest import ROOT
from tests.support.launcher import descendants
from tests.support.traffic import PROFILES, Known, Tally
from tools.soak import Memory, MemoryWatch, Report, proportional_memory, soak

SECONDS = 12.0
CLIENTS = 24


@pytest.fixture(scope="module")
def known(server: Triton) -> Known:
    return Known(server.address.grpc, 12)


def test_mixed_requests_of_many_clients_are_answered_as_each_is_alone(server: Triton, known: Known) -> None:
    pid = server.process.pid
    report = soak(server.address.grpc, known, lambda: {pid, *descendants(pid)}, SECONDS, CLIENTS, seed=1)
    assert not replace(report, memory=None).problems(), report.render()  # too short to judge the memory
    assert report.tally.answers > 2 * CLIENTS
    assert report.tally.slowest < 60
    assert not report.tally.errors
    assert all(rows for rows in known.good)  # every profile was asked for
    assert len(known.good) == len(PROFILES)


def test_every_wrong_row_of_an_answer_is_found(known: Known) -> None:
    rows = [3, 0, known.bad[0], 5]
    answer = {name: array[rows].copy() for name, array in known.answers[0].items()}
    assert known.wrong_rows(0, rows, answer) == set()
    answer["scores"][0, 2] += 2e-5
    answer["metaclip_embedding"][2] = 0
    answer["label"][3] = b"another"
    assert known.wrong_rows(0, rows, answer) == {0, 2, 3}
    swapped = {name: array[[0, 3, known.bad[0], 5]] for name, array in known.answers[0].items()}
    assert known.wrong_rows(0, rows, swapped) == {0, 1}
    assert known.wrong_rows(0, rows, {"score": np.zeros((3, 1), np.float32)}) == {0, 1, 2, 3}


def test_the_report_names_each_reason_to_fail() -> None:
    memory = Memory(start=1000, end=1049, per_minute=10)
    well = Report(60, Tally(requests=5, answers=5), memory, 1, [])
    assert well.problems() == []
    assert replace(well, memory=Memory(2000, 2099, 20)).problems() == []
    assert replace(well, memory=Memory(1000, 1060, 12)).problems() == [
        "memory is not flat: +60 MiB after the warm-up",
    ]
    bad = Report(60, Tally(requests=5, answers=4, mismatches=2), memory, 1, ["event=step_died step=preprocess"])
    assert bad.problems() == [
        "2 wrong rows",
        "1 requests without an answer",
        "the server died: event=step_died step=preprocess",
    ]
    assert "FAILED: 2 wrong rows" in bad.render()


def test_memory_that_grows_after_the_warm_up_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100.0 + second for second in range(30)] + [130.0] * 60 + [200.0] * 30)
    monkeypatch.setattr("tools.soak.proportional_memory", lambda _: next(sizes))
    watch = MemoryWatch(set)
    for second in range(120):
        watch.look(second)
    memory = watch.result(120)
    assert memory
    assert (memory.start, memory.end) == (130, 200)
    assert not memory.is_flat
    assert MemoryWatch(set).result(120) is None


def test_memory_that_is_shared_counts_once(server: Triton) -> None:
    pids = {server.process.pid, *descendants(server.process.pid)}
    rss = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids) / 2**20
    assert 50 < proportional_memory(pids) < rss


def test_the_help_names_the_options() -> None:
    command = [sys.executable, "-m", "tools.soak", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "200"}, cwd=ROOT).stdout
    for option in ("--minutes", "--clients", "--seed", "--json"):
        assert option in text
