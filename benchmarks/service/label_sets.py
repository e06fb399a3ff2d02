"""What scoring costs per image, by size of the label set, beside what the encoders cost.

    python -m benchmarks.service.label_sets                # prints and writes results/label_sets.md
    python -m benchmarks.service.label_sets --quick        # prints only

Scoring is the module that `ensembling` runs, with random embeddings as wide as the real pair's. The encoder beside it
is a ViT-B/16 image tower of random weights in PyTorch, on the same cores, alternating with the scoring.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import open_clip
import torch
import typer
from numpy.typing import NDArray

from clipchoir_steps.scoring.formula import Texts, score
from clipchoir_steps.scoring.options import MEAN_EMBEDDING, SOFTMAX_MEAN, Scoring

ROOT = Path(__file__).parents[2]

RESULT = Path(__file__).parents[1] / "results" / "label_sets.md"
DIMS = (1280, 1536)  # of MetaCLIP bigG and EVA-CLIP-18B
SHAPES = ((6, 52), (100, 80), (1000, 1), (1000, 80))  # classes, templates
BATCHES = (1, 8, 64)
PAIR_OF_RECIPE = 967.5 + 9121.1  # GFLOP per image

Array = NDArray[np.float32]
Counts = NDArray[np.int64]


def unit(generator: np.random.Generator, rows: int, dim: int) -> Array:
    """Random rows of length 1."""
    values = generator.standard_normal((rows, dim), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds; write nothing.")] = False) -> None:
    """Print the table."""
    rounds = 1 if quick else 5
    generator = np.random.default_rng(0)
    tower = open_clip.create_model("ViT-B-16").visual.eval()
    picture = torch.randn(8, 3, 224, 224)

    def encode() -> None:
        with torch.inference_mode():
            tower(picture)

    encode()
    lines = []
    for classes, templates in SHAPES:
        counts = np.full(classes, templates)
        prompts = [unit(generator, classes * templates, dim) for dim in DIMS]
        for aggregate in (SOFTMAX_MEAN, MEAN_EMBEDDING):
            if aggregate != SOFTMAX_MEAN and (classes, templates) == SHAPES[-1]:
                continue  # as many embeddings as of the shape before it
            texts = [Texts.of(each, counts, aggregate) for each in prompts]
            how = Scoring((0.5, 0.5), 100.0, 0.0, aggregate)
            for batch in BATCHES:
                images = [unit(generator, batch, dim) for dim in DIMS]

                def scoring(images: list[Array] = images, texts: list[Texts] = texts, how: Scoring = how) -> None:
                    score(images, texts, how)

                def product(images: list[Array] = images, texts: list[Texts] = texts) -> None:
                    for one, other in zip(images, texts, strict=True):
                        one @ other.distinct.T

                scoring()
                times = [
                    (seconds(scoring) / batch, seconds(product) / batch, seconds(encode) / 8) for _ in range(rounds)
                ]
                cost, bound, encoder = (statistics.median(each) for each in zip(*times, strict=True))
                gflop = 2 * sum(DIMS) * len(texts[0].distinct) / 1e9
                lines.append(
                    f"| {classes} x {templates} | {aggregate} | {batch} | {1000 * cost:.2f} | {cost / bound:.2f} "
                    f"| {cost / (2 * encoder):.1%} | {gflop / PAIR_OF_RECIPE:.4%} |"
                )
                print(lines[-1], flush=True)
    head = (
        "| classes x templates | aggregate | batch | ms per image | of the matrix products alone | of two ViT-B/16 "
        "| FLOPs of the recipe's encoders |\n|---|---|---|---|---|---|---|"
    )
    text = "\n".join([head, *lines])
    if quick:
        return
    RESULT.write_text(
        "# What scoring costs\n\n"
        "    python -m benchmarks.service.label_sets\n\n"
        f"{len(os.sched_getaffinity(0))} cores of {platform.machine()}, numpy {np.__version__}, medians of {rounds} "
        "rounds; embeddings of 1280 and 1536 numbers.\nThe sixth column is the cost as a share of two ViT-B/16 image "
        "towers in PyTorch (batch 8) on the same cores;\nthe last is its FLOPs as a share of MetaCLIP bigG's and "
        "EVA-CLIP-18B's.\n\n"
        f"{text}\n"
    )


if __name__ == "__main__":
    typer.run(main)
