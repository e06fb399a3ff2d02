"""The ensembles that come with clipchoir, with what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from clipchoir_export import costs
from clipchoir_export.families import registry
from clipchoir_export.spec import Precision, load_ensemble, shipped_ensembles

_BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
HEADINGS = ("ensemble", "encoder", "parameters", "weights", "per image", "ImageNet", "licence of the weights")


@dataclass(frozen=True)
class Preset:
    """One encoder of a shipped ensemble.

    Attributes:
        ensemble: name of the ensemble.
        encoder: architecture, or name of the checkpoint where that says it.
        parameters: numbers in the image tower.
        weight_bytes: size of the image tower in the spec's precision.
        precision: precision in the spec.
        flops_per_image: operations of the image tower.
        imagenet_top1: published zero-shot accuracy, per cent.
        licence: licence of the weights.
    """

    ensemble: str
    encoder: str
    parameters: int
    weight_bytes: int
    precision: str
    flops_per_image: int
    imagenet_top1: float | None
    licence: str

    def row(self) -> tuple[str, ...]:
        """The cells under `HEADINGS`."""
        return (
            self.ensemble,
            self.encoder,
            f"{self.parameters / 1e6:,.0f} M",
            f"{self.weight_bytes / 1e9:.2f} GB {self.precision}",
            f"{self.flops_per_image / 1e9:,.1f} GFLOP",
            f"{self.imagenet_top1} %" if self.imagenet_top1 else "",
            self.licence,
        )


def presets() -> list[Preset]:
    """Every encoder of every shipped ensemble, smallest ensembles first; nothing is downloaded."""
    found: list[list[Preset]] = []
    for path in shipped_ensembles():
        spec = load_ensemble(path)
        rows = []
        for encoder in spec.encoders:
            tower, architecture = registry.image_skeleton(encoder, path)
            parameters = sum(each.numel() for each in tower.parameters())
            rows.append(
                Preset(
                    spec.name,
                    encoder.architecture or encoder.checkpoint,
                    parameters,
                    parameters * _BYTES[encoder.precision],
                    encoder.precision,
                    costs.flops_per_image(tower, architecture.image_size),
                    encoder.imagenet_top1,
                    encoder.licence or "",
                )
            )
        found.append(rows)
    ordered = sorted(found, key=lambda rows: sum(row.flops_per_image for row in rows))
    return [row for rows in ordered for row in rows]


def markdown(rows: list[Preset]) -> str:
    """A table as GitHub shows it."""
    cells = [HEADINGS, tuple("---" for _ in HEADINGS), *(row.row() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
