"""What a server says of itself."""

from dataclasses import dataclass
from typing import Any

from clipchoir._connection import Connection
from clipchoir._protocol import Service


@dataclass(frozen=True)
class ModelStatus:
    """Status of a model in the repository.

    Attributes:
        name, version: of the model.
        state: Triton's: READY, UNAVAILABLE, LOADING or UNLOADING; or empty, for a model that was never loaded.
        reason: for its state.
        rows: that it has answered since the server was started.
        executions: batches in which it did.
        failures: requests that failed.
        queue_ms, compute_ms: per request, mean since the server was started; NaN before the first. A step that answers
            later (see docs/metrics.md) computes until it takes the batch.
    """

    name: str
    version: str
    state: str
    reason: str
    rows: int
    executions: int
    failures: int
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Status:
    """Status of a server.

    Attributes:
        url: of its gRPC endpoint.
        version: of Triton.
        ready: it takes requests.
        service: its encoders, default label set and repository version; None if it serves no `zero_shot`.
        models: of the repository.
    """

    url: str
    version: str
    ready: bool
    service: Service | None
    models: tuple[ModelStatus, ...]

    @classmethod
    def of(cls, connection: Connection, service: Service | None) -> "Status":
        """Ask a server for its status.

        Raises:
            ClipchoirError: it does not answer.
        """
        statistics = {(each.name, each.version): each for each in connection.statistics()}
        models = [_model(each, statistics.get((each.name, each.version))) for each in connection.models()]
        return cls(connection.url, connection.version(), connection.is_ready(), service, tuple(models))

    def rows(self, model: str) -> int:
        """Rows that all versions of a model have answered."""
        return sum(each.rows for each in self.models if each.name == model)


def _model(entry: Any, statistics: Any) -> ModelStatus:
    if statistics is None:
        return ModelStatus(entry.name, entry.version, entry.state, entry.reason, 0, 0, 0, float("nan"), float("nan"))
    times = statistics.inference_stats
    return ModelStatus(
        entry.name,
        entry.version,
        entry.state,
        entry.reason,
        statistics.inference_count,
        statistics.execution_count,
        times.fail.count,
        _mean_ms(times.queue),
        _mean_ms(times.compute_infer) if times.compute_infer.count else _mean_ms(times.success),
    )


def _mean_ms(duration: Any) -> float:
    return duration.ns / duration.count / 1e6 if duration.count else float("nan")
