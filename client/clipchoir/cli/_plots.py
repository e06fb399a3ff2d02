"""Plots of an evaluation; matplotlib is imported only when they are wanted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipchoir.cli._evaluation import Evaluation
from clipchoir.cli._optional_imports import needed


def check() -> None:
    """Before long work.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    needed("plots", "matplotlib")


def write(folder: Path, evaluation: Evaluation, trials: Sequence[tuple[str, str, float]]) -> None:
    """confusion.png, reliability.png, and sweep_<option>.png for each option that was tried."""
    _, figures, backend = needed("plots", "matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg")
    folder.mkdir(parents=True, exist_ok=True)

    def save(figure: object, name: str) -> None:
        backend.FigureCanvasAgg(figure).print_figure(folder / f"{name}.png", dpi=150, bbox_inches="tight")

    save(_confusion(figures, evaluation), "confusion")
    save(_reliability(figures, evaluation), "reliability")
    for option in dict.fromkeys(option for option, _, _ in trials):
        figure = figures.Figure(figsize=(6, 4))
        axes = figure.add_subplot(ylabel="accuracy", xlabel=option)
        values = [value for name, value, _ in trials if name == option]
        axes.plot(values, [accuracy for name, _, accuracy in trials if name == option], marker="o")
        axes.tick_params(axis="x", rotation=60)
        axes.grid(alpha=0.3)
        save(figure, f"sweep_{option}")


def _confusion(figures: object, evaluation: Evaluation) -> object:
    size = len(evaluation.classes)
    figure = figures.Figure(figsize=(min(40, 2 + 0.55 * size), min(40, 1.5 + 0.5 * size)))  # type: ignore[attr-defined]
    axes = figure.add_subplot(xlabel="predicted", ylabel="true", title=f"accuracy {evaluation.accuracy:.2%}")
    counts = evaluation.confusion
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(size), evaluation.classes, rotation=60, ha="right")
    axes.set_yticks(range(size), evaluation.classes)
    if size <= 30:  # more would not be readable
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    column,
                    row,
                    count,
                    ha="center",
                    va="center",
                    color="white" if shares[row, column] > 0.5 else "black",
                )
    return figure


def _reliability(figures: object, evaluation: Evaluation) -> object:
    figure = figures.Figure(figsize=(5, 5))  # type: ignore[attr-defined]
    axes = figure.add_subplot(
        xlabel="score", ylabel="accuracy", title=f"expected calibration error {evaluation.calibration_error:.3f}"
    )
    bins = list(evaluation.bins())
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect")
    for low, high, count, _, accuracy in bins:
        axes.bar(low, accuracy, width=high - low, align="edge", alpha=0.5, color="tab:blue", edgecolor="white")
        axes.text((low + high) / 2, accuracy, count, ha="center", va="bottom", fontsize=7)
    axes.plot(
        [score for *_, score, _ in bins], [accuracy for *_, accuracy in bins], "o-", color="tab:blue", label="ensemble"
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    axes.legend(loc="upper left")
    return figure
