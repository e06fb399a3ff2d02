"""The metrics of `ensembling`, which several threads change."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from clipchoir_steps.metrics import (
    AGREEMENT,
    LABEL_SET_BYTES,
    LABEL_SET_REQUESTS,
    PREDICTIONS,
    PROMPTS_EMBEDDED,
    Metrics,
)


class Family:
    """Metrics that notice it when two threads use them at once, which crashes Triton."""

    COUNTER, GAUGE = "counter", "gauge"
    busy = threading.Lock()
    values: dict[tuple[str, ...], float]
    overlaps = 0

    def __init__(self, name: str, **_: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> SimpleNamespace:  # noqa: N802
        key = (self.name, *labels.values())

        def change(by: float) -> None:
            if not Family.busy.acquire(blocking=False):
                Family.overlaps += 1
                return
            time.sleep(0.0005)
            Family.values[key] = Family.values.get(key, 0) + by
            Family.busy.release()

        return SimpleNamespace(increment=change, set=change)


def test_no_two_threads_use_a_metric_at_once() -> None:
    Family.values, Family.overlaps = {}, 0
    metrics = Metrics(SimpleNamespace(MetricFamily=Family))

    def use(number: int) -> None:
        metrics.add(LABEL_SET_REQUESTS, 1, found="memory")
        metrics.add(PROMPTS_EMBEDDED, 2)
        metrics.set(LABEL_SET_BYTES, 1, where="memory")
        if number % 2:
            metrics.add(PREDICTIONS, 2, label_set="pets", label="dog")
        else:
            metrics.add(PREDICTIONS, 3, label_set="ad-hoc", label="")
        metrics.add(AGREEMENT, 1, agreed="no")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(40)))
    assert Family.overlaps == 0
    assert Family.values["clipchoir_label_set_requests_total", "memory"] == 40
    assert Family.values["clipchoir_prompts_embedded_total",] == 80
    assert Family.values["clipchoir_predictions_total", "pets", "dog"] == 40
    assert Family.values["clipchoir_predictions_total", "ad-hoc", ""] == 60
    assert Family.values["clipchoir_agreement_images_total", "no"] == 40
