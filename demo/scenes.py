"""Six classes of procedural scenes, drawn from a seed: the demo's training and test pictures.

    python -m demo.scenes contact-sheet sheet.png
    python -m demo.scenes render --count 100 --seed 7 pictures/
    python -m demo.scenes samples demo/samples

The same seed gives the same picture wherever the same versions of numpy and Pillow run. Pictures are drawn on a canvas
of bounded size and then brought to the size asked for, so that a small picture is anti-aliased and a large one cheap.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw
from rich.progress import track

from demo import buildings, peaks, plants, street, water
from demo.atmosphere import add_weather, choose_light, degrade, paint_sky
from demo.canvas import Canvas, Light

CLASSES = ("Buildings", "Forests", "Glacier", "Mountains", "Sea", "Street")
SMALLEST, LARGEST = (150, 150), (1600, 1200)
SAMPLE_SEED, SAMPLE_SIDE = 910_000, 800

Painter = Callable[[Canvas, np.random.Generator, Light], set[str]]

_PAINTERS: dict[str, tuple[tuple[Painter, float], ...]] = {
    "Buildings": (
        (buildings.paint_skyline, 0.4),
        (buildings.paint_front, 0.2),
        (buildings.paint_corner, 0.22),
        (buildings.paint_houses, 0.18),
    ),
    "Forests": (
        (plants.paint_inside, 0.38),
        (plants.paint_slope, 0.24),
        (plants.paint_from_above, 0.2),
        (plants.paint_edge, 0.18),
    ),
    "Glacier": ((peaks.paint_tongue, 0.4), (peaks.paint_ice_front, 0.35), (peaks.paint_seracs, 0.25)),
    "Mountains": ((peaks.paint_range, 0.5), (peaks.paint_peak, 0.27), (peaks.paint_ridges, 0.23)),
    "Sea": (
        (water.paint_open_sea, 0.42),
        (water.paint_beach, 0.26),
        (water.paint_storm, 0.2),
        (water.paint_coast_from_above, 0.12),
    ),
    "Street": ((street.paint_street, 1.0),),
}


@dataclass(frozen=True)
class Scene:
    """One picture and all that a caption may say of it.

    Attributes:
        image: RGB.
        time: "day", "sunset" or "night".
        weather: "clear", "cloudy", "fog", "rain" or "snow".
        things: what else is to be seen, such as "cars" or "boats".
        faults: what the camera did wrong, such as "blurry".
        quality: the JPEG quality to store it with.
    """

    image: Image.Image
    class_name: str
    time: str
    weather: str
    things: frozenset[str]
    faults: frozenset[str]
    quality: int

    def jpeg(self) -> bytes:
        """The picture as JPEG bytes."""
        stream = io.BytesIO()
        self.image.save(stream, "JPEG", quality=self.quality)
        return stream.getvalue()


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """A width and height between 150x150 and 1600x1200, small ones more often, in the shapes cameras have."""
    area = math.exp(rng.uniform(math.log(SMALLEST[0] * SMALLEST[1]), math.log(LARGEST[0] * LARGEST[1])))
    aspect = float(rng.choice([1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3], p=[0.3, 0.28, 0.14, 0.12, 0.1, 0.06]))
    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return (
        int(min(LARGEST[0], max(SMALLEST[0], width))),
        int(min(LARGEST[1], max(SMALLEST[1], height))),
    )


def bounded_size(seed: int, longest: int) -> tuple[int, int]:
    """The random size that belongs to a seed, shrunk so that its longer side is at most `longest` pixels."""
    width, height = random_size(np.random.default_rng(seed))
    shrink = min(1.0, longest / max(width, height))
    return max(SMALLEST[0], round(width * shrink)), max(SMALLEST[1], round(height * shrink))


def render(
    class_name: str,
    seed: int | np.random.Generator,
    size: tuple[int, int] | None = None,
    *,
    blur: bool | None = None,
) -> Scene:
    """Draw one scene.

    Args:
        class_name: one of `CLASSES`.
        seed: a number, or a generator to draw from.
        size: (width, height) in pixels; a random one by default.
        blur: force the picture blurred (True) or not blurred (False); by default one in four is.

    Raises:
        KeyError: for an unknown class.
    """
    painters = _PAINTERS[class_name]
    rng = np.random.default_rng(seed)
    width, height = size or random_size(rng)
    shrink = _canvas_scale(width, height)
    canvas = Canvas(max(2, round(width * shrink)), max(2, round(height * shrink)))
    light = choose_light(rng)
    paint_sky(canvas, rng, light, canvas.height * float(rng.uniform(0.45, 0.8)))
    painter = painters[int(rng.choice(len(painters), p=[share for _, share in painters]))][0]
    things = painter(canvas, rng, light)
    image = add_weather(canvas.finish(), rng, light)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    image, faults, quality = degrade(image, rng, blur)
    return Scene(image, class_name, light.time, light.weather, frozenset(things), faults, quality)


def _canvas_scale(width: int, height: int) -> float:
    """How much larger than the picture to draw: 1.5 times, within bounds that keep drawing fast and fine."""
    unit = math.sqrt(width * height)
    return min(max(1.5 * unit, 320.0), 680.0) / unit


app = typer.Typer(add_completion=False, help="Draw procedural scenes of six classes.")


@app.command()
def contact_sheet(
    out: Annotated[Path, typer.Argument(help="The picture to write.")],
    columns: Annotated[int, typer.Option(help="Pictures per class.")] = 8,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    side: Annotated[int, typer.Option(help="Side of each picture in pixels.")] = 160,
) -> None:
    """Draw a sheet with one row per class."""
    sheet = Image.new("RGB", (columns * side, len(CLASSES) * (side + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, class_name in enumerate(CLASSES):
        draw.text((4, row * (side + 14) + 1), class_name, fill="black")
        for column in range(columns):
            scene = render(class_name, seed + row * 1000 + column)
            image = Image.open(io.BytesIO(scene.jpeg())).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * side, row * (side + 14) + 14))
    sheet.save(out)


@app.command(name="render")
def render_folder(
    out: Annotated[Path, typer.Argument(help="The folder to write; one sub-folder per class.")],
    count: Annotated[int, typer.Option(min=1, help="Pictures per class.")] = 10,
    seed: Annotated[int, typer.Option(help="First seed; each picture takes the next.")] = 0,
    max_side: Annotated[int, typer.Option(min=150, help="Longest side, in pixels.")] = LARGEST[0],
) -> None:
    """Write JPEG files as CLASS/class_NN.jpg."""
    digits = max(2, len(str(count - 1)))
    for index in track(range(count * len(CLASSES)), description="rendering"):
        class_name, number = CLASSES[index // count], index % count
        own_seed = seed + index
        folder = out / class_name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{class_name.lower()}_{number:0{digits}}.jpg"
        path.write_bytes(render(class_name, own_seed, bounded_size(own_seed, max_side)).jpeg())


@app.command()
def samples(out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("demo/samples")) -> None:
    """Write the ten samples per class that the repository carries."""
    render_folder(out, count=10, seed=SAMPLE_SEED, max_side=SAMPLE_SIDE)


if __name__ == "__main__":
    app()
