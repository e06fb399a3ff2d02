"""What gpu.py has measured, kept between runs."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASELINE = "PyTorch"
_MEASURED = "measured.json"


@dataclass(frozen=True)
class Rate:
    """Images per second of one encoder, in one round."""

    encoder: str
    way: str
    batch: int
    round: int
    images_per_second: float


@dataclass(frozen=True)
class Served:
    """Images per second of the served pair, in one round; the mean batch of each step."""

    batch: int
    in_flight: int
    round: int
    images_per_second: float
    mean_batches: dict[str, float]


@dataclass
class Bench:
    """Everything measured so far.

    Attributes:
        settings: what must be the same for an interrupted run to go on: shapes, machine, versions.
        encoders: title, precision and flops_per_image, by name.
        rates: of the encoders alone.
        served: of the pair.
        peaks: FLOP per second of matrix products, one for each round, by precision.
        memory: bytes of the card, by encoder and process.
        agreement: smallest cosine between an embedding and PyTorch's, by encoder and way.
        on_cpu: how many nodes of each kind ONNX Runtime did not place on the card, by encoder.
        failures: what could not be measured, and why.
        runtimes: versions that the processes named.
        command: that made it.
        embeddings: of the first images, by encoder and way.
    """

    settings: dict[str, Any]
    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    rates: list[Rate] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    peaks: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    on_cpu: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    runtimes: dict[str, str] = field(default_factory=dict)
    command: str = ""
    embeddings: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)

    @classmethod
    def resume(cls, folder: Path, settings: dict[str, Any], fresh: bool) -> "Bench":
        """What an interrupted run with the same settings has left, or nothing. What failed is tried again."""
        path = folder / _MEASURED
        if fresh or not path.is_file():
            return cls(settings)
        found = from_json(json.loads(path.read_text()))
        found.failures = {}
        return found if found.settings == settings else cls(settings)

    def save(self, folder: Path) -> None:
        """For `resume`."""
        write(folder / _MEASURED, json.dumps(asdict(self)))

    def describe(self, encoder: str, title: str, precision: str, flops: int) -> None:
        """What an encoder is."""
        self.encoders[encoder] = {"title": title, "precision": precision, "flops_per_image": flops}

    def note(self, encoder: str, kind: str, info: dict[str, Any]) -> None:
        """What a process says of itself."""
        if info.get("on_cpu") is not None and kind == "ONNX Runtime":
            self.on_cpu[encoder] = info["on_cpu"]
        self.runtimes |= {name: str(value) for name, value in info.items() if name != "on_cpu"}

    def has(self, encoder: str, way: str, batch: int, number: int) -> bool:
        """Whether this was measured."""
        return any(
            (each.encoder, each.way, each.batch, each.round) == (encoder, way, batch, number) for each in self.rates
        )

    def has_served(self, batch: int, number: int) -> bool:
        """Whether this was measured."""
        return any((each.batch, each.round) == (batch, number) for each in self.served)

    def embedded(self, encoder: str) -> Iterable[str]:
        """The ways that `add_embeddings` was told of."""
        return self.embeddings.get(encoder, {})

    def add_embeddings(self, encoder: str, way: str, embeddings: NDArray[np.float64]) -> None:
        """Rows of length 1, (N, D)."""
        known = self.embeddings.setdefault(encoder, {})
        known[way] = embeddings.tolist()
        if BASELINE in known:
            base = np.array(known[BASELINE])
            cosines = {name: float((np.array(each) * base).sum(axis=1).min()) for name, each in known.items()}
            self.agreement[encoder] = cosines

    def rate(self, encoder: str, way: str, batch: int) -> list[float]:
        """Of all rounds."""
        return [
            each.images_per_second
            for each in self.rates
            if (each.encoder, each.way, each.batch) == (encoder, way, batch)
        ]

    def ideal_seconds(self, encoder: str) -> float:
        """That an image would take at the card's peak; NaN if that was not measured."""
        peaks = self.peaks.get(self.encoders[encoder]["precision"])
        return self.encoders[encoder]["flops_per_image"] / statistics.median(peaks) if peaks else float("nan")

    def add_memory(self, encoder: str, kind: str, count: int) -> None:
        """The most that was seen counts."""
        known = self.memory.setdefault(encoder, {})
        known[kind] = max(count, known.get(kind, 0))


def from_json(content: dict[str, Any]) -> Bench:
    """The inverse of `asdict`."""
    rates = [Rate(**each) for each in content.pop("rates")]
    served = [Served(**each) for each in content.pop("served")]
    return Bench(rates=rates, served=served, **content)


def write(path: Path, text: str) -> None:
    """All of it, or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
