"""Measure the demo's ensemble on scenes that training never saw, and write the figures into the model cards.

    python -m demo.evaluate

Pictures go through the arithmetic that the served ensemble is defined by, written here with Pillow, torch and float64
numpy: squash-resize, sharpen, normalise, encode, softmax over all prompts, weighted sum, mean per class.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.progress import track

from clipchoir_export.families import registry as encoders
from clipchoir_export.spec import EncoderSpec, EnsembleSpec, find_ensemble, load_ensemble, load_label_set
from demo import cards
from demo.cards import Figures
from demo.scenes import CLASSES, render

HELD_OUT_SEED, BLURRED_SEED = 20_000_000, 30_000_000

Scores = NDArray[np.float64]


class Encoder:
    """One of the ensemble's pairs, with the embeddings of all prompts."""

    def __init__(self, spec: EncoderSpec, spec_path: Path, prompts: Sequence[str]) -> None:
        self.spec = spec
        encoder = encoders.open_encoder(spec, spec_path)
        self.architecture = encoder.architecture
        self.image = encoder.image.load()
        with torch.inference_mode():
            texts = encoder.text.load()(SimpleTokenizer()(list(prompts)))
        self.texts = _unit(texts)  # (P, D)

    def probabilities(self, images: Sequence[Image.Image], sharpness: float) -> Scores:
        """Pictures of the encoder's size -> the softmax over all prompts, (N, P)."""
        pixels = np.stack([np.asarray(ImageEnhance.Sharpness(image).enhance(sharpness)) for image in images])
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.architecture.mean, self.architecture.std))
        with torch.inference_mode():
            embeddings = _unit(self.image((scaled - mean) / std))
        logits = 100.0 * embeddings @ self.texts.T
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def _unit(rows: torch.Tensor) -> Scores:
    values = rows.double().numpy()
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def choices(
    pairs: Sequence[Encoder], prompt_counts: Sequence[int], images: Sequence[Image.Image], plain: bool
) -> NDArray[np.int64]:
    """The class chosen by each encoder and by the ensemble, `(E + 1, N)`."""
    weights = np.array([pair.spec.weight for pair in pairs], np.float64)
    found = []
    for start in track(range(0, len(images), 50), description="scoring", transient=True):
        some = images[start : start + 50]
        each = [pair.probabilities(some, 1.0 if plain else pair.spec.sharpness) for pair in pairs]
        each.append(np.einsum("e,enp->np", weights / weights.sum(), np.stack(each)))
        edges = np.cumsum([0, *prompt_counts[:-1]])
        by_class = np.add.reduceat(np.stack(each), edges, axis=2) / np.array(prompt_counts)
        found.append(by_class.argmax(2))
    return np.concatenate(found, axis=1)


def held_out(count: int, seed: int, blur: bool | None, side: int, processes: int) -> list[Image.Image]:
    """`count` scenes per class, class after class, in all sizes, stored as JPEG, read back and brought to `side`."""
    with ProcessPoolExecutor(processes) as pool:
        numbers = range(count * len(CLASSES))
        drawn = pool.map(partial(_draw, count=count, seed=seed, blur=blur, side=side), numbers, chunksize=10)
        return list(track(drawn, total=len(numbers), description="rendering", transient=True))


def _draw(number: int, count: int, seed: int, blur: bool | None, side: int) -> Image.Image:
    scene = render(CLASSES[number // count], seed + number, blur=blur)
    stored = Image.open(io.BytesIO(scene.jpeg())).convert("RGB")
    return stored.resize((side, side), Image.Resampling.BICUBIC)


def measure(spec: EnsembleSpec, spec_path: Path, count: int, processes: int) -> Figures:
    """Render and score `count` held-out scenes per class, and half as many blurred ones."""
    label_set = load_label_set(spec.label_sets[0], spec_path)
    if label_set.classes != CLASSES:
        raise ValueError(f"label set {spec.label_sets[0]} has other classes than the scenes: {label_set.classes}")
    pairs = [Encoder(encoder, spec_path, label_set.prompts()) for encoder in spec.encoders]
    side = pairs[0].architecture.image_size
    counts = label_set.prompt_counts()

    def hits(per_class: int, seed: int, blur: bool | None, plain: bool) -> NDArray[np.bool_]:
        images = held_out(per_class, seed, blur, side, processes)
        right = choices(pairs, counts, images, plain) == np.repeat(np.arange(len(CLASSES)), per_class)
        return np.asarray(right.reshape(len(pairs) + 1, len(CLASSES), per_class))

    sharp = hits(count, HELD_OUT_SEED, None, plain=False)
    blurred, blurred_plain = (hits(count // 2, BLURRED_SEED, True, plain) for plain in (False, True))
    return Figures(
        names=(*(encoder.checkpoint.split(":")[-1].split("/")[-1] for encoder in spec.encoders), "ensemble"),
        pictures=sharp[0].size,
        accuracy=tuple(sharp.mean((1, 2)).tolist()),
        per_class=tuple(tuple(row) for row in sharp.mean(2).tolist()),
        blurred_pictures=blurred[0].size,
        blurred=tuple(blurred.mean((1, 2)).tolist()),
        blurred_plain=tuple(blurred_plain.mean((1, 2)).tolist()),
    )


def main(
    ensemble: Annotated[str, typer.Option(help="Name or file of the ensemble's spec.")] = "demo",
    count: Annotated[int, typer.Option(help="Held-out scenes per class.")] = 100,
    processes: Annotated[int, typer.Option(help="Processes that render.")] = 2,
    threads: Annotated[int, typer.Option(help="Threads that encode.")] = 2,
    write: Annotated[bool, typer.Option(help="Write the figures into the model cards.")] = True,
) -> None:
    """Measure the demo's ensemble on held-out scenes."""
    torch.set_num_threads(threads)
    path = find_ensemble(ensemble)
    figures = measure(load_ensemble(path), path, count, processes)
    Console().print(figures.console())
    if write:
        cards.update(figures)


if __name__ == "__main__":
    typer.run(main)
