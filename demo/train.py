"""Train the two demo checkpoints from scratch, on a CPU.

    python -m demo.train

renders the training pictures (once), trains both pairs one after the other, and writes their weights beside the configs
in `demo/checkpoints`. Everything is seeded: the same versions of torch, numpy and Pillow, on the same kind of processor
and with as many threads, give the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageEnhance
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo import pairs, training_set
from demo.captions import is_true, true_claims, write_caption
from demo.training_set import SIDE, TrainingSet

SEEDS = {"demo-metaclip": 11, "demo-evaclip": 23}
UNUSED_TOKEN = 2.0**-6
"""Size of every element in the rows of tokens that no caption uses: they differ by their signs alone, and pack well."""
_SCALE_RANGE = (20.0, pairs.LOGIT_SCALE)

BatchMaker = Callable[[NDArray[np.int64], np.random.Generator], "Batch"]


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of."""

    epochs: int
    batch: int = 128
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.05
    warmup: int = 150


@dataclass(frozen=True)
class Batch:
    """Pictures (B, 3, S, S), a caption for each (B, at most 77), and which caption is true of which picture (B, B)."""

    images: Tensor
    tokens: Tensor
    truth: Tensor


def augment(picture: NDArray[np.uint8], rng: np.random.Generator, side: int) -> Image.Image:
    """Crop, flip, sharpen and recolour a picture at random, and bring it to `side` pixels square."""
    width, height = SIDE * (1 - rng.uniform(0, 0.32, 2) * (rng.random() < 0.7))
    left, top = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
    image = Image.fromarray(picture)
    image = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Sharpness(image).enhance(rng.uniform(1.0, 2.6))
    if rng.random() < 0.5:
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.4, 1.3))
    contrast, brightness = rng.uniform(0.7, 1.2), rng.uniform(-25, 25)
    levels = np.clip((np.arange(256) - 128) * contrast + 128 + brightness, 0, 255).astype(int).tolist()
    return image.point(levels * 3)


def normalise(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, S, S, 3) -> float32 (N, 3, S, S), as CLIP's image towers expect it."""
    images = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return images.sub_(mean * 255).div_(std * 255)


def make_batches(data: TrainingSet, used: NDArray[np.int64], side: int = 224) -> BatchMaker:
    """A function from picture numbers to a batch; captions now and then get stray tokens, which carry no meaning."""
    tokenizer = SimpleTokenizer()
    truth = np.stack([true_claims(facts) for facts in data.facts])
    stray_tokens = np.setdiff1d(np.arange(tokenizer.sot_token_id), used)

    def make(chosen: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        captions = [write_caption(rng, data.facts[index]) for index in chosen]
        tokens = tokenizer([caption.text for caption in captions])
        for row in tokens:
            if rng.random() < 0.2:
                _insert_stray(row, rng, stray_tokens)
        tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]  # nothing after the end token counts
        pictures = np.stack([np.asarray(augment(data.pictures[index], rng, side)) for index in chosen])
        return Batch(normalise(pictures), tokens, torch.from_numpy(is_true(captions, truth[chosen])).float())

    return make


def _insert_stray(row: Tensor, rng: np.random.Generator, stray_tokens: NDArray[np.int64]) -> None:
    length = int(row.argmax()) + 1  # the end token has the highest number
    for _ in range(int(rng.integers(1, 4))):
        if length < len(row):
            place = int(rng.integers(1, length))
            row[place + 1 : length + 1] = row[place:length].clone()
            row[place] = int(rng.choice(stray_tokens))
            length += 1


def used_tokens(data: TrainingSet, seed: int = 0, rounds: int = 4) -> NDArray[np.int64]:
    """The tokens that captions of these pictures use, sorted."""
    rng, tokenizer = np.random.default_rng(seed), SimpleTokenizer()
    captions = (write_caption(rng, facts) for _ in range(rounds) for facts in data.facts)
    found = {token for caption in captions for token in tokenizer.encode(caption.text)}
    return np.array(sorted(found | {tokenizer.sot_token_id, tokenizer.eot_token_id}))


def prepare_token_table(pair: pairs.Pair, used: NDArray[np.int64], seed: int) -> None:
    """Fill and freeze the rows of tokens that are not `used`."""
    table = pair.token_embedding.weight
    signs = np.random.default_rng(seed).integers(0, 2, table.shape) * 2 - 1
    trained = torch.zeros(len(table), 1)
    trained[torch.from_numpy(used)] = 1
    with torch.no_grad():
        table.copy_(trained * table + (1 - trained) * UNUSED_TOKEN * torch.from_numpy(signs))
    table.register_hook(lambda gradient: gradient * trained)


def contrastive_loss(images: Tensor, texts: Tensor, truth: Tensor, scale: float) -> Tensor:
    """Each picture with all captions that are true of it, and the other way round.

    The targets are spread evenly over what is true; a third term asks only that true captions together get the mass,
    which is what the served scores sum up.
    """
    logits = scale * images @ texts.T  # (B, B)
    by_image, by_text = logits.log_softmax(1), logits.log_softmax(0)
    spread = -(by_image * truth / truth.sum(1, keepdim=True)).sum(1).mean()
    spread_back = -(by_text * truth / truth.sum(0, keepdim=True)).sum(0).mean()
    mass = -torch.logsumexp(by_image.masked_fill(truth == 0, -math.inf), 1).mean()
    return (spread + spread_back) / 2 + mass


def train(folder: Path, data: TrainingSet, recipe: Recipe, progress: Progress) -> None:
    """Train the pair whose config is in `folder`, and write its weights beside it."""
    seed = SEEDS[folder.name]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pair = pairs.build(folder).train()
    used = used_tokens(data)
    prepare_token_table(pair, used, seed)
    make_batch = make_batches(data, used)
    steps = recipe.epochs * (len(data.facts) // recipe.batch)
    optimiser = _optimiser(pair, recipe)
    task = progress.add_task(folder.name, total=steps, loss="")
    order, recent = np.empty(0, np.int64), 0.0
    for step in range(steps):
        if len(order) < recipe.batch:
            order = rng.permutation(len(data.facts))
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        warm, done = min(1.0, (step + 1) / recipe.warmup), step / steps
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        scale = _SCALE_RANGE[0] + (_SCALE_RANGE[1] - _SCALE_RANGE[0]) * min(1.0, done / 0.6)
        batch = make_batch(chosen, rng)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            images, texts = pair(batch.images, batch.tokens)
        loss = contrastive_loss(images.float(), texts.float(), batch.truth, scale)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimiser.step()
        recent = 0.98 * recent + 0.02 * loss.item() if step else loss.item()
        progress.update(task, advance=1, loss=f"loss {recent:.3f}")
        if step % 100 == 99:
            progress.console.print(f"{folder.name}: step {step + 1} of {steps}, loss {recent:.3f}")
    pair.save(folder)


def _optimiser(pair: pairs.Pair, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(pair.named_parameters())
    plain = [p for name, p in parameters if p.ndim < 2 or "embed" in name or "cls_token" in name]
    chosen = {id(p) for p in plain}
    decayed = [p for _, p in parameters if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def main(
    only: Annotated[str | None, typer.Option(help="Train this pair alone.")] = None,
    pictures: Annotated[Path, typer.Option(help="Where the rendered pictures are kept.")] = Path("build/demo-training"),
    checkpoints: Annotated[Path, typer.Option(help="Folder of the configs, and of the weights.")] = pairs.CHECKPOINTS,
    count: Annotated[int, typer.Option(help="Training pictures.")] = 12_000,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures.")] = 12,
    processes: Annotated[int, typer.Option(help="Processes that render.")] = 2,
    threads: Annotated[int, typer.Option(help="Threads that train.")] = 1,
) -> None:
    """Train the demo's two pairs."""
    torch.set_num_threads(threads)
    data = training_set.load(pictures, count, processes)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        for name in [only] if only else list(SEEDS):
            train(checkpoints / name, data, Recipe(epochs), progress)


if __name__ == "__main__":
    typer.run(main)
