"""Prometheus counters that Triton shows under `/metrics`. Every instance of a step adds to the same ones."""

from collections import Counter
from collections.abc import Iterable
from typing import Any


class Counters:
    """Counters of one name, told apart by one label; those of all the label's values are there from the start."""

    def __init__(self, pb_utils: Any, name: str, description: str, label: str, values: Iterable[str]) -> None:
        # Of one kind wherever the name is used: two kinds of one name were seen to crash the server while it loads.
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._metrics = {value: self._family.Metric(labels={label: value}) for value in values}

    def add(self, counts: Counter[str]) -> None:
        """Add to some of them; each takes a message to the server, some 20 microseconds."""
        for value, count in counts.items():
            if count:
                self._metrics[value].increment(count)
