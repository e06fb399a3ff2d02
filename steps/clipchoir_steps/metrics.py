"""Prometheus metrics of the ensembling step, served by Triton beside its own."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

AD_HOC = "ad-hoc"


class Metrics:
    """Counters and gauges; `docs/metrics.md` says what each is for. Safe to use from any thread."""

    def __init__(self, pb_utils: Any) -> None:
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE

        def family(name: str, description: str, kind: Any) -> Any:
            return pb_utils.MetricFamily(name=f"clipchoir_{name}", description=description, kind=kind)

        self._families = {
            "requests": family("label_set_requests_total", "Requests by where their label set was found", counter),
            "prompts": family("prompts_embedded_total", "Prompts that label sets of requests brought", counter),
            "predictions": family("predictions_total", "Images by label set and best class", counter),
            "agreement": family("agreement_images_total", "Images by whether all encoders agree", counter),
            "bytes": family("label_set_bytes", "Size of the label sets that requests brought", gauge),
        }
        self._metrics: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()  # two threads that use a metric of Triton's at once crash the whole server
        self._metric("prompts").increment(0)

    def found(self, where: str, embedded: int = 0) -> None:
        """A request's label set was found here; so many prompts had to be embedded for it."""
        with self._lock:
            self._metric("requests", found=where).increment(1)
            if embedded:
                self._metric("prompts").increment(embedded)

    def held(self, memory: int, files: int) -> None:
        """How large the label sets of requests are."""
        with self._lock:
            self._metric("bytes", where="memory").set(memory)
            self._metric("bytes", where="disk").set(files)

    def predicted(
        self, label_set: str, classes: Sequence[str], best: NDArray[np.intp], agreed: NDArray[np.bool_]
    ) -> None:
        """Images were scored.

        Args:
            label_set: name of a set of the repository, or `AD_HOC`, which stands for all others.
            classes: of the set.
            best: (N,) index of each image's best class.
            agreed: (N,) whether it is the best class of every encoder.
        """
        yes = int(agreed.sum())
        with self._lock:
            if label_set == AD_HOC:
                self._metric("predictions", label_set=AD_HOC, label="").increment(len(best))
            else:
                for index, count in zip(*np.unique(best, return_counts=True), strict=True):
                    self._metric("predictions", label_set=label_set, label=classes[index]).increment(int(count))
            for answer, count in (("yes", yes), ("no", len(agreed) - yes)):
                if count:
                    self._metric("agreement", agreed=answer).increment(count)

    def _metric(self, family: str, **labels: str) -> Any:
        key = (family, *labels.values())
        if key not in self._metrics:
            self._metrics[key] = self._families[family].Metric(labels=labels)
        return self._metrics[key]
