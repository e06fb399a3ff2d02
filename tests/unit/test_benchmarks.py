"""What the benchmarks make of their measurements."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common import in_process
from benchmarks.common.in_process import Way, ways
from benchmarks.common.perf_analyzer import _steady
from benchmarks.peers.load import poisson
from benchmarks.scaling import report as scaling_report
from benchmarks.service import precisions
from benchmarks.service.report import ReportError, shares, tables, write_plots

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RENDERED: dict[str, Callable[[Any], str]] = {
    "bench": tables,
    "precisions": precisions.report,
    "scaling": scaling_report.tables,
}


def point(in_flight: int, images_per_second: float, rate: float = 0.0) -> dict[str, Any]:
    step = {"images": 320, "mean_batch": 16.0, "queue_ms": 1.5, "compute_ms": 2.5}
    return {
        "repository": "demo",
        "size": [224, 224],
        "batch": 32,
        "in_flight": in_flight,
        "rate": rate,
        "images_per_second": images_per_second,
        "p50": 0.1,
        "p90": 0.2,
        "p99": 0.3,
        "client_cpu": 0.1,
        "usage": {"cpu_seconds": 1.0, "memory_mib": 400.0, "steps": {"zero_shot": step, "ensembling": step}},
    }


def measured(*throughputs: float) -> dict[str, Any]:
    limit = {"repository": "demo", "size": [224, 224], "batch": 32, "way": "two threads"}
    return {
        "command": "python -m benchmarks.service.bench",
        "machine": {"cores": 2, "architecture": "x86_64", "python": "3.11"},
        "points": [*(point(4, each) for each in throughputs), point(0, 150.0, rate=5.0)],
        "limits": [{**limit, "images_per_second": 400.0 + 100 * turn} for turn in range(len(throughputs))],
        "singles": [{"repository": "base", "served": 0.12, "in_process": 0.1}],
        "gflop": {"demo": 0.2},
        "matmul_gflops": 200.0,
        "matmul_by": "PyTorch",
    }


def test_a_share_of_the_limit_is_the_median_of_the_rounds_own_ratios() -> None:
    assert shares(measured(300.0, 250.0, 540.0)) == {("demo", (224, 224), 32, 4): pytest.approx(0.75)}


def test_the_report_has_the_ratios_and_compares_with_an_earlier_run() -> None:
    text = tables(measured(320.0), measured(160.0))
    (row,) = [line for line in text.splitlines() if line.startswith("| demo | 224x224 | 32 | 4 | 320.0 ")]
    assert "**0.80** | 0.75 |" in row
    assert "| 32.0% |" in row  # 320 images of 0.2 GFLOP, of 200 GFLOP/s
    assert row.endswith("| 0.40 | 2.00 |")
    assert "| base | 120.0 ms | 100.0 ms | **1.20** | at most 1.3 |" in text


def test_more_than_the_cores_can_do_is_an_error() -> None:
    assert "products in PyTorch on the same cores (200 GFLOP/s)" in tables(measured(999.0))
    with pytest.raises(ReportError, match=r"demo: 1001\.0 images/s of 0\.2 GFLOP .* 200 GFLOP/s of PyTorch's"):
        tables(measured(1001.0))


def test_the_peak_is_that_of_the_fastest_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def multipliers(one: np.ndarray, _: np.ndarray) -> dict[str, Callable[[], object]]:
        assert one.shape in ((1024, 1024), (2048, 2048))
        return {name: partial(calls.append, name) for name in ("slow", "fast")}

    calls: list[str] = []
    monkeypatch.setattr(in_process, "_multipliers", multipliers)
    monkeypatch.setattr(in_process, "_seconds", lambda work: work() or (1.0 if calls[-1] == "slow" else 0.5))
    assert in_process.matmul_peak(0.01) == ("fast", 2 * 2 * 2048**3)


def test_every_library_multiplies_the_same() -> None:
    one, other = (np.random.default_rng(seed).standard_normal((64, 64), np.float32) for seed in (0, 1))
    found = {name: np.squeeze(multiply()) for name, multiply in in_process._multipliers(one, other).items()}
    assert found.keys() == {"NumPy", "PyTorch", "ONNX Runtime"}
    for product in found.values():
        np.testing.assert_allclose(product, one.astype(float) @ other.astype(float), atol=1e-4)


def test_the_report_of_an_interrupted_run_says_what_there_is(tmp_path: Path) -> None:
    nothing = {**measured(), "points": [], "singles": []}
    assert "What the service costs" in tables(nothing)
    write_plots(measured(300.0, 250.0), tmp_path / "bench")
    assert {path.name for path in tmp_path.iterdir()} == {"bench_throughput.png", "bench_latency.png"}


def test_steady_throughput_leaves_out_the_first_and_the_last_answers() -> None:
    starts = np.array([0, 0, 10, 20, 30, 40])
    ends = np.array([10, 20, 30, 40, 50, 550])  # the last one was late
    assert _steady(starts, ends, concurrency=2) == pytest.approx(2 / 20e-9)
    assert _steady(starts[:2], ends[:2], concurrency=2) == pytest.approx(2 / 20e-9)


def test_arrivals_are_random_at_the_rate_and_the_same_for_the_same_seed() -> None:
    times = poisson(rate=20.0, seconds=100.0, seed=3)
    assert times == poisson(rate=20.0, seconds=100.0, seed=3) != poisson(rate=20.0, seconds=100.0, seed=4)
    assert len(times) / times[-1] == pytest.approx(20.0, rel=0.1)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as in an exponential distribution


def test_the_quick_search_for_the_limit_tries_some_of_all_ways() -> None:
    assert set(ways(quick=True)) <= set(ways(quick=False))
    assert Way(1, 1, False, True, 4) in ways(quick=True)


@pytest.mark.parametrize("name", ["bench", "peers", "precisions", "scaling"])
def test_the_committed_report_is_what_its_measurements_say(name: str) -> None:
    """The Markdown beside each JSON was not edited by hand."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    text = (RESULTS / f"{name}.md").read_text()
    assert content["command"] in text
    if name in RENDERED:
        assert text.rstrip() == RENDERED[name](content).rstrip()
