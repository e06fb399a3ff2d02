"""clipchoir top"""

import http.client
import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clipchoir._protocol import MODEL
from clipchoir.cli._app import app, reporting
from clipchoir.cli._options import AsJson
from clipchoir.errors import ServerFailedError, UnreachableError

_TIMEOUT = 10.0  # seconds
_MOST_CLASSES = 10  # shown

Labels = frozenset[tuple[str, str]]
Sample = dict[tuple[str, Labels], float]


@dataclass(frozen=True)
class Rates:
    """What has changed between two samples of a server's metrics, per second."""

    before: Sample
    now: Sample
    seconds: float

    def rate(self, name: str, **labels: str) -> float:
        """Rate of a counter, summed over all its other labels. A server that was started again counts from 0."""
        wanted = set(labels.items())
        keys = [key for key in self.now if key[0] == name and wanted <= key[1]]
        return sum(max(0.0, self.now[key] - self.before.get(key, 0.0)) for key in keys) / self.seconds

    def value(self, name: str, **labels: str) -> float:
        """Value of a gauge, summed over all its other labels."""
        wanted = set(labels.items())
        return sum(value for key, value in self.now.items() if key[0] == name and wanted <= key[1])

    def by(self, name: str, label: str) -> dict[str, float]:
        """Rates of a counter by one of its labels, those that are above 0."""
        values = {dict(key[1])[label] for key in self.now if key[0] == name and label in dict(key[1])}
        rates = {value: self.rate(name, **{label: value}) for value in sorted(values)}
        return {value: rate for value, rate in rates.items() if rate > 0}

    def models(self) -> list[str]:
        return sorted({dict(key[1])["model"] for key in self.now if key[0] == "nv_inference_count"})

    def mean_ms(self, kind: str, model: str) -> float | None:
        """Mean duration per request: queue, compute_infer or request."""
        requests = self.rate("nv_inference_request_success", model=model)
        name = f"nv_inference_{kind}_duration_us"
        return self.rate(name, model=model) / requests / 1000 if requests else None


def read(url: str) -> Sample:
    """The metrics of a server.

    Raises:
        UnreachableError: no server answers there.
        ServerFailedError: what answers there has no Triton metrics.
    """
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_TIMEOUT) as answer:
            text = answer.read().decode()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"no metrics at {url}: {getattr(error, 'reason', error)}; --metrics-url names another"
        ) from error
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise ServerFailedError(f"what {url} answers are no metrics: {error}") from error
    if not any(sample.name.startswith("nv_") for sample in samples):
        raise ServerFailedError(f"{url} has no metrics of Triton's")
    # The parser gives every counter the suffix that Triton's own lack.
    return {(sample.name.removesuffix("_total"), frozenset(sample.labels.items())): sample.value for sample in samples}


@app.command()
def top(
    metrics_url: Annotated[
        str, typer.Option(help="The server's metrics endpoint.", envvar="CLIPCHOIR_METRICS_URL")
    ] = "http://localhost:8002/metrics",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many looks; default: with Ctrl-C.")] = None,
    as_json: AsJson = False,
) -> None:
    """Watch a server: images per second, queues, times, failures, predictions. With --json one line per look."""
    with reporting():
        looks = _looks(metrics_url, interval, count)
        if as_json:
            for rates in looks:
                print(json.dumps(summary(rates)), flush=True)
            return
        with Live(Text(f"watching {metrics_url}"), auto_refresh=False, screen=False) as live:
            for rates in looks:
                live.update(render(summary(rates)), refresh=True)


def _looks(url: str, interval: float, count: int | None) -> Iterator[Rates]:
    before, at = read(url), time.monotonic()
    while count is None or count > 0:
        time.sleep(interval)
        now, then = read(url), time.monotonic()
        yield Rates(before, now, then - at)
        before, at = now, then
        count = None if count is None else count - 1


def summary(rates: Rates) -> dict[str, Any]:
    """Numbers of one look; times in milliseconds per request, None where there was none."""
    agreed = rates.by("clipchoir_agreement_images", "agreed")
    predicted = rates.by("clipchoir_predictions", "label")
    most = sorted(predicted.items(), key=lambda pair: -pair[1])[:_MOST_CLASSES]
    return {
        "images_per_second": rates.rate("nv_inference_count", model=MODEL),
        "requests_per_second": rates.rate("nv_inference_request_success", model=MODEL),
        "failures_per_second": rates.rate("nv_inference_request_failure", model=MODEL),
        "models": {
            model: {
                "images_per_second": rates.rate("nv_inference_count", model=model),
                "batches_per_second": rates.rate("nv_inference_exec_count", model=model),
                "pending": rates.value("nv_inference_pending_request_count", model=model),
                "queue_ms": rates.mean_ms("queue", model),
                "compute_ms": rates.mean_ms("compute_infer", model),
                "request_ms": rates.mean_ms("request", model),
            }
            for model in rates.models()
        },
        "agreement": agreed.get("yes", 0.0) / sum(agreed.values()) if agreed else None,
        "undecodable_per_second": rates.by("clipchoir_images", "outcome").get("rejected", 0.0),
        "predictions_per_second": dict(most),
    }


def render(numbers: dict[str, Any]) -> RenderableType:
    """The same for people."""
    head = (
        f"{numbers['images_per_second']:.1f} images/s   {numbers['requests_per_second']:.1f} requests/s   "
        f"{numbers['failures_per_second']:.1f} failures/s   {numbers['undecodable_per_second']:.1f} undecodable/s   "
        f"encoders agree {_shown(numbers['agreement'], '.1%')}"
    )
    models = Table("model", "images/s", "per batch", "pending", "queue ms", "compute ms", "request ms", box=None)
    for name, model in numbers["models"].items():
        batches = model["batches_per_second"]
        batch = model["images_per_second"] / batches if batches else None
        times = [_shown(model[key], ".1f") for key in ("queue_ms", "compute_ms", "request_ms")]
        models.add_row(
            Text(name), f"{model['images_per_second']:.1f}", _shown(batch, ".1f"), f"{model['pending']:.0f}", *times
        )
    predictions = Table("predicted", "images/s", box=None)
    for label, rate in numbers["predictions_per_second"].items():
        predictions.add_row(Text(label or "(sets that requests brought)"), f"{rate:.1f}")
    return Group(Text(head), models, predictions)


def _shown(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)
