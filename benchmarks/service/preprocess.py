"""How fast the preprocessing step's own code is, beside plain PIL, and what scaled decoding of JPEGs changes.

    python -m benchmarks.service.preprocess                                  # prints and writes results/preprocess.md
    python -m benchmarks.service.preprocess --quick                          # prints only; a minute
    python -m benchmarks.service.preprocess --repository build/demo          # with the demo encoders' embeddings, too

Everything is compared with its counterpart round by round in one process: on a busy machine ratios hold where absolute
figures do not. No Triton takes part but in the last table.
"""

import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from clipchoir_export.spec import ServingSpec
from clipchoir_steps.preprocess.batch import Batch, Decoder
from clipchoir_steps.preprocess.decode import Limits
from clipchoir_steps.preprocess.settings import Settings
from demo import scenes

ROOT = Path(__file__).parents[2]

RESULT = Path(__file__).parents[1] / "results" / "preprocess.md"
SIDE = 224
SIZES = ((224, 224), (1600, 1200), (4000, 3000))
BATCHES = (1, 8, 64)
DEFAULTS = ServingSpec()
LIMITS = Limits(DEFAULTS.max_image_bytes, DEFAULTS.max_image_pixels, DEFAULTS.max_image_side)
THREADS = len(os.sched_getaffinity(0))

Work = Callable[[Sequence[bytes]], object]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and pictures; write nothing.")] = False,
    repository: Annotated[Path | None, typer.Option(help="The demo's, for embeddings and the real server.")] = None,
) -> None:
    """Print the tables."""
    tables = [speed_table(rounds=5 if quick else 25), agreement_table(6 if quick else 60, repository)]
    if repository:
        tables.append(server_table(repository, seconds=2 if quick else 10))
    text = "\n\n".join(tables)
    print(text)
    if not quick:
        RESULT.write_text(f"{introduction(repository)}\n\n{text}\n")
        print(f"\nwritten to {RESULT}")


def introduction(repository: Path | None) -> str:
    """Head of the result."""
    option = f" --repository {repository}" if repository else ""
    return (
        "# The preprocessing step beside plain PIL\n\n"
        "Each picture is a JPEG of quality 90, drawn by demo/scenes.py. *Plain* is\n"
        '`np.asarray(Image.open(...).convert("RGB").resize((224, 224), BICUBIC))` in a loop, or over a thread pool.\n'
        "Ratios are medians over interleaved rounds; images/s depend on what else the machine did.\n\n"
        f"Machine: {os.cpu_count()} cores, {platform.machine()}; {THREADS} decoding threads. "
        f"Pillow {Image.__version__}. Command:\n\n"  # type: ignore[attr-defined]
        f"    python -m benchmarks.service.preprocess{option}"
    )


# Speed of the code itself


def plain(data: bytes) -> NDArray[np.uint8]:
    """What anyone would write."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def step(scaled: bool) -> Callable[[Sequence[bytes]], Batch]:
    """The step's code as `model.py` calls it: one request."""
    decoder = Decoder(Settings(LIMITS, THREADS, scaled), (SIDE,))

    def work(rows: Sequence[bytes]) -> Batch:
        batch = Batch(rows, (SIDE,))
        decoder.decode([batch])
        return batch

    return work


def speed_table(rounds: int) -> str:
    """Images per second of every way, and how the step compares."""
    pool = ThreadPoolExecutor(THREADS)
    ways: dict[str, Work] = {
        "plain": lambda rows: np.stack([plain(row) for row in rows]),
        "plain pool": lambda rows: np.stack(list(pool.map(plain, rows))),
        "step": step(scaled=False),
        "step scaled": step(scaled=True),
    }
    lines = [
        f"| JPEGs | batch | plain, 1 thread | plain, {THREADS} threads | step | step, scaled | step / plain 1 "
        f"| step / plain {THREADS} | scaled / step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for width, height in SIZES:
        jpegs = [jpeg(picture(seed, (width, height))) for seed in range(4)]
        for size in BATCHES:
            if width * height * size > 64 * 1600 * 1200:
                continue
            rows = [jpegs[index % len(jpegs)] for index in range(size)]
            repeats = max(1, round(0.05 / (timed(ways["plain"], rows))))
            seconds = interleaved(ways, rows, rounds, repeats)
            rates = [f"{size * repeats / statistics.median(seconds[way]):,.0f}/s" for way in ways]
            ratios = [
                statistics.median(other / own for own, other in zip(seconds[a], seconds[b], strict=True))
                for a, b in (("step", "plain"), ("step", "plain pool"), ("step scaled", "step"))
            ]
            lines.append(
                f"| {width}x{height} | {size} | {' | '.join(rates)} | {' | '.join(f'{each:.2f}' for each in ratios)} |"
            )
    return "\n".join(lines)


def interleaved(ways: dict[str, Work], rows: Sequence[bytes], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every way in every round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            start = time.perf_counter()
            for _ in range(repeats):
                work(rows)
            seconds[way].append(time.perf_counter() - start)
    return seconds


def timed(work: Work, rows: Sequence[bytes]) -> float:
    """Seconds of a second call."""
    work(rows)
    start = time.perf_counter()
    work(rows)
    return time.perf_counter() - start


# What scaled decoding changes


@dataclass(frozen=True)
class Agreement:
    """Exact against scaled pixels of some pictures."""

    mean: float  # absolute difference, of 255
    worst_mean: float  # of any one picture
    largest: int
    cosines: dict[str, float]  # the smallest, by encoder


def agreement_table(pictures: int, repository: Path | None) -> str:
    """Pixels and embeddings, exact against scaled."""
    encoders = dict(load_encoders(repository)) if repository else {}
    lines = [
        f"| {pictures} JPEGs each | mean difference | worst picture's mean | largest difference "
        f"| {' | '.join(f'smallest cosine, {name}' for name in encoders)} |".replace("|  |", "|"),
        "|---" * (4 + len(encoders)) + "|",
    ]
    for name, images in samples(pictures):
        found = agreement([jpeg(image) for image in images], encoders)
        cosines = "".join(f" {cosine:.5f} |" for cosine in found.cosines.values())
        lines.append(f"| {name} | {found.mean:.2f} | {found.worst_mean:.2f} | {found.largest} |{cosines}")
    return "\n".join(lines)


def samples(pictures: int) -> Iterator[tuple[str, Iterator[Image.Image]]]:
    """Kinds of pictures."""
    for size in ((1600, 1200), (1601, 1203), (4000, 3000)):
        yield f"scenes {size[0]}x{size[1]}", (picture(seed, size) for seed in range(pictures))
    yield "scenes with camera noise 1600x1200", (grainy(picture(seed, (1600, 1200)), seed) for seed in range(pictures))
    yield "white noise 1600x1200", (white_noise(seed) for seed in range(pictures))


def agreement(
    jpegs: Sequence[bytes], encoders: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]
) -> Agreement:
    """Compare the two ways on some JPEGs."""
    exact, scaled = (np.concatenate([pixels(jpeg, scaled) for jpeg in jpegs]) for scaled in (False, True))
    difference = np.abs(exact.astype(np.int16) - scaled)
    means = difference.mean(axis=(1, 2, 3))
    return Agreement(
        float(means.mean()),
        float(means.max()),
        int(difference.max()),
        {name: float((encode(exact) * encode(scaled)).sum(axis=1).min()) for name, encode in encoders.items()},
    )


def pixels(data: bytes, scaled: bool) -> NDArray[np.uint8]:
    """One picture, as the encoders get it, (1, S, S, 3)."""
    return step(scaled)([data]).pixels[SIDE]


def load_encoders(repository: Path) -> Iterator[tuple[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]]:
    """The repository's image encoders, by name."""
    import onnxruntime

    for path in sorted(repository.glob("*/1/model.onnx")):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def encode(images: NDArray[np.uint8], session: onnxruntime.InferenceSession = session) -> NDArray[np.float32]:
            parts = np.array_split(images, -(-len(images) // 16))
            return np.concatenate([session.run(["embedding"], {"pixels": part})[0] for part in parts])

        yield path.parts[-3], encode


# Through the real server


def server_table(repository: Path, seconds: float) -> str:
    """Images per second of the model `preprocess` with eight clients on the same machine."""
    import tritonclient.grpc as grpcclient

    from clipchoir_server.triton import Address, serving

    lines = ["| through tritonserver, 8 clients here | batch | images/s |", "|---|---|---|"]
    with (
        serving(repository, Address.choose()) as triton,
        grpcclient.InferenceServerClient(triton.address.grpc) as client,
    ):
        for width, height in SIZES[:2]:
            jpegs = [jpeg(picture(seed, (width, height))) for seed in range(4)]
            for size in BATCHES:
                image = grpcclient.InferInput("image", [size, 1], "BYTES")
                image.set_data_from_numpy(np.array([[jpegs[index % 4]] for index in range(size)], np.object_))
                outputs = [grpcclient.InferRequestedOutput("status")]
                start = time.perf_counter()
                end = start + seconds

                def send(_: int, image: object = image, outputs: object = outputs, end: float = end) -> int:
                    requests = 0
                    while time.perf_counter() < end:
                        client.infer("preprocess", [image], outputs=outputs)
                        requests += 1
                    return requests

                with ThreadPoolExecutor(8) as clients:
                    done = sum(clients.map(send, range(8)))
                rate = done * size / (time.perf_counter() - start)
                lines.append(f"| {width}x{height} | {size} | {rate:,.0f}/s |")
    return "\n".join(lines)


# Pictures


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A scene; large ones are enlarged, which costs little and has the edges of a picture out of a camera."""
    drawn = scenes.render(scenes.CLASSES[seed % len(scenes.CLASSES)], seed, (min(size[0], 1600), min(size[1], 1200)))
    return drawn.image.resize(size, Image.Resampling.BICUBIC)


def grainy(image: Image.Image, seed: int) -> Image.Image:
    """As from a small sensor at night."""
    noise = np.random.default_rng(seed).normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def white_noise(seed: int) -> Image.Image:
    """The hardest picture to make smaller."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (1200, 1600, 3), np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """As a file."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


if __name__ == "__main__":
    typer.run(main)
