"""The steps' Prometheus metrics, which Triton serves beside its own: their table, and the one way to change them."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """Metrics of one name, which differ in their labels. `docs/metrics.md` says what each is for.

    Attributes:
        name: in Prometheus.
        kind: the same wherever the name is used: two kinds of one name crash Triton while it loads.
        description: for people.
        labels: names of the labels.
    """

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()


IMAGES = Family("clipchoir_images_total", "counter", "Images by outcome.", ("outcome",))
DECODE_ERRORS = Family(
    "clipchoir_decode_errors_total", "counter", "Rejected images by what is wrong with them.", ("kind",)
)
LABEL_SET_REQUESTS = Family(
    "clipchoir_label_set_requests_total", "counter", "Requests by where their label set was found", ("found",)
)
PROMPTS_EMBEDDED = Family("clipchoir_prompts_embedded_total", "counter", "Prompts that label sets of requests brought")
LABEL_SET_BYTES = Family(
    "clipchoir_label_set_bytes", "gauge", "Size of the label sets that requests brought", ("where",)
)
PREDICTIONS = Family(
    "clipchoir_predictions_total", "counter", "Images by label set and best class", ("label_set", "label")
)
AGREEMENT = Family("clipchoir_agreement_images_total", "counter", "Images by whether all encoders agree", ("agreed",))
BATCH_SECONDS = Family(
    "clipchoir_pass_seconds_total", "counter", "Seconds of the batches of a step that answers deferred.", ("model",)
)


class Metrics:
    """The metrics that one process changes. Safe to use from any thread."""

    def __init__(self, pb_utils: Any) -> None:
        self._pb_utils = pb_utils
        self._families: dict[str, Any] = {}  # Triton's metrics need them alive
        self._metrics: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()  # two threads that use a metric of Triton's at once crash the whole server

    def add(self, family: Family, amount: float, **labels: str) -> None:
        """Add to a counter, 0 to make it appear; each change is a message to the server, of some 20 microseconds."""
        with self._lock:
            self._metric(family, labels).increment(amount)

    def set(self, family: Family, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._metric(family, labels).set(value)

    def _metric(self, family: Family, labels: Mapping[str, str]) -> Any:
        key = (family.name, *(labels[name] for name in family.labels))
        if key not in self._metrics:
            if family.name not in self._families:
                kinds = self._pb_utils.MetricFamily
                self._families[family.name] = kinds(
                    name=family.name,
                    description=family.description,
                    kind=kinds.COUNTER if family.kind == "counter" else kinds.GAUGE,
                )
            self._metrics[key] = self._families[family.name].Metric(labels=dict(labels))
        return self._metrics[key]
