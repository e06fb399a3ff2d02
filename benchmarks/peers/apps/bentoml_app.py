"""BentoML with its adaptive batching: `bentoml serve bentoml_app:Classifier`.

The body is taken as it is, by a type of our own: BentoML's way of taking several files (a form, and a file on disk for
each of them) costs more. Metrics and the log of requests are off.
"""

from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from pipeline import Answer, Pipeline, Settings, rows
from pydantic import BeforeValidator, WithJsonSchema

LONGEST = 600  # seconds that a request may wait
settings = Settings.read()

Rows = Annotated[
    list[bytes],
    BeforeValidator(lambda body: rows(body) if isinstance(body, bytes) else body),
    WithJsonSchema({"type": "file", "format": "binary"}),
    ContentType("application/octet-stream"),
]


@bentoml.service(
    name="classifier",
    workers=settings.workers,
    threads=settings.threads,
    traffic={"timeout": LONGEST},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Classifier:
    """Images, each with its length before it -> a label, scores and an error for each."""

    def __init__(self) -> None:
        self.pipeline = Pipeline(settings)

    @bentoml.api(batchable=True, max_batch_size=settings.max_batch, max_latency_ms=1000 * LONGEST)
    def classify(self, images: Rows, /) -> list[dict[str, Any]]:
        answer: Answer = self.pipeline(images)
        return [
            {"label": label, "scores": None if error else scores, "error": error}
            for label, scores, error in zip(answer.labels, answer.scores.tolist(), answer.errors, strict=True)
        ]
