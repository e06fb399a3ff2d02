"""The embedded backend on CPUs: a batch is run in parts, and put together again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipchoir_server.backend.micro_batches import ROWS, in_parts


@pytest.mark.parametrize("rows", [1, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 1, 64])
def test_a_batch_in_parts_is_what_it_is_as_a_whole(rows: int) -> None:
    sizes: list[int] = []

    def run(part: dict[str, np.ndarray]) -> list[np.ndarray]:
        sizes.append(len(part["x"]))
        return [part["x"] + part["y"], part["x"].sum(axis=1)]

    inputs = {"x": np.arange(rows * 3.0).reshape(rows, 3), "y": np.full((rows, 3), 0.5)}
    with ThreadPoolExecutor(2) as workers:
        total, sums = in_parts(run, inputs, workers)
    np.testing.assert_array_equal(total, inputs["x"] + 0.5)
    np.testing.assert_array_equal(sums, inputs["x"].sum(axis=1))
    assert sum(sizes) == rows
    assert max(sizes) <= ROWS
    assert max(sizes) - min(sizes) <= 1


def test_parts_run_at_the_same_time_and_a_single_one_where_it_is_called() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(part: dict[str, np.ndarray]) -> list[np.ndarray]:
        both.wait()
        return [part["x"]]

    threads: list[threading.Thread] = []

    def note(part: dict[str, np.ndarray]) -> list[np.ndarray]:
        threads.append(threading.current_thread())
        return [part["x"]]

    with ThreadPoolExecutor(2) as workers:
        in_parts(meet, {"x": np.zeros((2 * ROWS, 1))}, workers)
        in_parts(note, {"x": np.zeros((ROWS, 1))}, workers)
    assert threads == [threading.current_thread()]


def test_what_fails_in_a_part_fails_the_batch() -> None:
    def fail(part: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise ValueError(f"no room for {len(part['x'])} rows")

    with ThreadPoolExecutor(2) as workers, pytest.raises(ValueError, match=f"no room for {ROWS} rows"):
        in_parts(fail, {"x": np.zeros((3 * ROWS, 1))}, workers)
