"""Batches on CPUs: parts of a few rows, several at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import pairwise

import numpy as np

# What a layer makes of so few rows stays in the cores' caches until the next layer takes it up. Fewer rows are not
# faster still.
ROWS = 4

Inputs = dict[str, np.ndarray]


def in_parts(run: Callable[[Inputs], Sequence[np.ndarray]], inputs: Inputs, workers: Executor) -> list[np.ndarray]:
    """Run a batch part by part, on all workers at the same time.

    Args:
        run: one part, (n, ...) each -> (n, ...) each; is called from several threads at a time.
        inputs: (N, ...) each.
        workers: threads; the calling one runs what is a single part.

    Returns:
        What `run` returns for the whole batch, (N, ...) each.
    """
    rows = len(next(iter(inputs.values())))
    count = -(-rows // ROWS)
    if count <= 1:
        return list(run(inputs))
    ends = [rows * part // count for part in range(count + 1)]
    parts = [{name: array[start:end] for name, array in inputs.items()} for start, end in pairwise(ends)]
    done = workers.map(run, parts)
    return [np.concatenate(arrays) for arrays in zip(*done, strict=True)]
