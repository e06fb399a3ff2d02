"""The parts of the model cards that are measured: written between markers, so that nobody types a figure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from demo import pairs
from demo.scenes import CLASSES


@dataclass(frozen=True)
class Figures:
    """Accuracies of the encoders and of the ensemble on scenes that training never saw.

    Attributes:
        names: the encoders' checkpoints, then "ensemble".
        accuracy: of each of `names`; `per_class` the same by class, `(len(names), C)`.
        blurred: of each on blurred scenes, sharpened as served; `blurred_plain` without sharpening.
    """

    names: tuple[str, ...]
    pictures: int
    accuracy: tuple[float, ...]
    per_class: tuple[tuple[float, ...], ...]
    blurred_pictures: int
    blurred: tuple[float, ...]
    blurred_plain: tuple[float, ...]

    def rows(self) -> list[list[str]]:
        """The table: one column per encoder and one for the ensemble, the names on top."""
        measures = [(f"all {self.pictures} scenes", self.accuracy)]
        measures += zip(CLASSES, zip(*self.per_class, strict=True), strict=True)
        measures.append((f"{self.blurred_pictures} blurred scenes", self.blurred))
        measures.append(("the same, not sharpened", self.blurred_plain))
        return [["", *self.names], *([name, *(f"{share:.3f}" for share in shares)] for name, shares in measures)]

    def console(self) -> Table:
        """The table for a terminal."""
        header, *rows = self.rows()
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table for a model card."""
        header, *rows = self.rows()
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def update(figures: Figures) -> None:
    """Write the figures, and each pair's size and cost, into the model cards.

    Raises:
        ValueError: a card lacks a pair of markers.
    """
    for name in figures.names[:-1]:
        folder = pairs.CHECKPOINTS / name
        _fill(folder / "README.md", "size", size_of(folder))
        _fill(folder / "README.md", "accuracy", figures.markdown())


def size_of(folder: Path) -> str:
    """Parameters and cost of the pair in a folder, as a markdown list."""
    pair = pairs.build(folder).eval()
    table = pair.token_embedding.weight.numel()
    towers = sum(parameter.numel() for parameter in pair.image.parameters())
    everything = sum(parameter.numel() for parameter in pair.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair.image(torch.zeros(1, 3, 224, 224))
    return "\n".join(
        [
            f"- image tower: {towers:,} parameters, {counter.get_total_flops() / 1e6:.0f} MFLOP per image",
            f"- text tower: {everything - towers - table:,} parameters, and a token table of {table:,}",
        ]
    )


def _fill(card: Path, name: str, content: str) -> None:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = card.read_text(encoding="utf-8")
    filled, count = re.subn(f"{start}.*?{end}", lambda _: f"{start}\n{content}\n{end}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f'{card}: needs one "{start}" followed by "{end}", has {count}')
    card.write_text(filled, encoding="utf-8")
