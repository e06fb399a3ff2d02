"""Drawing primitives for the scene renderer: a canvas, seeded noise, colours, perspective.

Arrays are float32; pictures are `(H, W, 3)` in 0..255, masks and noise `(H, W)` in 0..1. Coordinates are pixels,
x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour `share` of the way from `first` to `second`."""
    a, b, c = (p + (q - p) * share for p, q in zip(first, second, strict=True))
    return a, b, c


def scale(colour: Colour, factor: float) -> Colour:
    """`colour` made brighter (`factor` > 1) or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def to_rgb(colour: Colour) -> tuple[int, int, int]:
    """`colour` as the clipped integers Pillow draws with."""
    red, green, blue = (min(255, max(0, int(value))) for value in colour)
    return red, green, blue


def vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """`colour` with brightness and each channel moved at random, `spread` in 0..255 units."""
    common = rng.normal(0, spread)
    a, b, c = (value + common + rng.normal(0, spread / 3) for value in colour)
    return a, b, c


def pick(rng: np.random.Generator, options: Sequence[Colour]) -> Colour:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    cells: tuple[float, float],
    octaves: int = 4,
    fade: float = 0.5,
) -> Array:
    """Fractal value noise, `(height, width)`, stretched to 0..1; `cells` is the coarsest grid as (rows, columns)."""
    total = np.zeros((height, width), np.float32)
    strength, rows, columns = 1.0, cells[0], cells[1]
    for octave in range(octaves):
        if rows > height / 2 and columns > width / 2:
            break
        smooth = Image.Resampling.BILINEAR if octave > 1 else Image.Resampling.BICUBIC
        shape = max(2, min(height, round(rows))), max(2, min(width, round(columns)))
        grid = Image.fromarray(rng.random(shape, dtype=np.float32))
        total += strength * np.asarray(grid.resize((width, height), smooth))
        strength, rows, columns = strength * fade, rows * 2, columns * 2
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def profile(rng: np.random.Generator, length: int, cells: float, octaves: int = 6, fade: float = 0.5) -> Array:
    """A fractal line of `length` values in about -1..1, linear between its knots: ridges, waterlines, crowns."""
    total = np.zeros(length, np.float32)
    strength = 1.0
    for _ in range(octaves):
        knots = rng.uniform(-1, 1, int(cells) + 2)
        total += np.float32(strength) * np.interp(
            np.linspace(0, len(knots) - 1, length), np.arange(len(knots)), knots
        ).astype(np.float32)
        strength, cells = strength * fade, cells * 2
        if cells > length:
            break
    return total


def smoothstep(values: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def homography(quad: Sequence[Point]) -> NDArray[np.float64]:
    """The `(3, 3)` projective map of the unit square's corners (0,0) (1,0) (1,1) (0,1) to `quad`."""
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    rows, right = [], []
    for (u, v), (x, y) in zip(corners, quad, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        right += [x, y]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(right, float)), 1.0).reshape(3, 3)


def apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map `(..., 2)` points through a homography."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


@dataclass(frozen=True)
class Light:
    """What the time of day and the weather do to a colour.

    `tint` multiplies, `haze` is what distance fades to, `density` how fast (per unit of depth, 1 being far away).
    """

    time: str
    weather: str
    tint: Colour
    haze: Colour
    density: float
    sky_top: Colour
    sky_low: Colour

    def shade(self, colour: Colour, depth: float = 0.0) -> Colour:
        """`colour` as seen at `depth` in this light."""
        tinted = colour[0] * self.tint[0], colour[1] * self.tint[1], colour[2] * self.tint[2]
        return mix(tinted, self.haze, 1 - float(np.exp(-self.density * depth)))

    def shade_array(self, pixels: Array, depth: float | Array = 0.0) -> Array:
        """`(H, W, 3)` pixels as seen at `depth`, a number or `(H, W)`."""
        veil = 1 - np.exp(-self.density * np.asarray(depth, np.float32))[..., None]
        return pixels * (np.array(self.tint, np.float32) * (1 - veil)) + np.array(self.haze, np.float32) * veil

    @property
    def dark(self) -> bool:
        """Whether lamps and windows are lit."""
        return self.time == "night"


class Canvas:
    """A picture being painted, with a second layer of light that is blurred and added at the end."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.unit = float(np.sqrt(width * height))
        self.image = Image.new("RGB", (width, height))
        self.draw = ImageDraw.Draw(self.image)
        self._glow = Image.new("RGB", (width, height))
        self._glow_draw = ImageDraw.Draw(self._glow)
        self._glows = False

    def grid(self) -> tuple[Array, Array]:
        """Rows `(H, 1)` and columns `(1, W)` in 0..1."""
        rows = np.linspace(0, 1, self.height, dtype=np.float32)[:, None]
        return rows, np.linspace(0, 1, self.width, dtype=np.float32)[None, :]

    def noise(
        self, rng: np.random.Generator, rows: float, columns: float, octaves: int = 4, fade: float = 0.5
    ) -> Array:
        """Noise over the whole canvas; see `noise`."""
        return noise(rng, self.height, self.width, (rows, columns), octaves, fade)

    def polygon(self, points: Iterable[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self.draw.polygon([(float(x), float(y)) for x, y in points], fill=to_rgb(colour))

    def ellipse(self, centre: Point, radius: tuple[float, float], colour: Colour) -> None:
        """Fill an ellipse."""
        (x, y), (across, up) = centre, radius
        self.draw.ellipse((x - across, y - up, x + across, y + up), fill=to_rgb(colour))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """Draw a line of `width` pixels, one at least."""
        self.draw.line([(float(x), float(y)) for x, y in points], fill=to_rgb(colour), width=max(1, round(width)))

    def glow(self, centre: Point, radius: float, colour: Colour) -> None:
        """Add light around a point when the canvas is finished."""
        x, y = centre
        self._glow_draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=to_rgb(colour))
        self._glows = True

    def pixels(self) -> Array:
        """The picture so far, a copy."""
        return np.asarray(self.image, np.float32).copy()

    def put(self, pixels: Array, mask: Array | Image.Image | None = None, top: int = 0) -> None:
        """Lay `(h, W, 3)` pixels over the picture from row `top`, where `mask` (0..1, or an "L" image) says so."""
        layer = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        if mask is None:
            self.image.paste(layer, (0, top))
        else:
            image = mask if isinstance(mask, Image.Image) else as_mask(mask)
            self.image.paste(layer, (0, top), image)

    def mask(self, points: Iterable[Point]) -> Image.Image:
        """A polygon as an "L" mask."""
        image = Image.new("L", (self.width, self.height))
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=255)
        return image

    def below(self, heights: Array, top: int = 0) -> Array:
        """The mask of everything below a line, one y a column `(W,)`, softened over a pixel; rows from `top` on."""
        rows = np.arange(top, self.height, dtype=np.float32)[:, None]
        return np.clip(rows - heights[None, :] + 0.5, 0, 1)

    def finish(self) -> Image.Image:
        """The picture with its lights."""
        if not self._glows:
            return self.image
        small = self._glow.resize((max(1, self.width // 4), max(1, self.height // 4)), Image.Resampling.BOX)
        soft = small.filter(ImageFilter.GaussianBlur(self.unit / 4 * 0.012))
        return ImageChops.add(self.image, soft.resize(self.image.size, Image.Resampling.BILINEAR))


def as_mask(values: Array) -> Image.Image:
    """0..1 values as an "L" image."""
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def _mirrored(places: Array, length: int) -> NDArray[np.int32]:
    """Indices into an axis that goes on for ever, back and forth, so that no seam shows."""
    index = np.floor(places).astype(np.int32) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def ground_texture(
    canvas: Canvas, tile: Array, horizon: float, *, across: float, along: float, centre: float = 0.5
) -> tuple[Array, Array]:
    """A plane that recedes to `horizon` (a y), textured with the wrapped `tile`.

    Returns the texture `(H, W)` and the depth `(H, 1)` (1 at the bottom edge, growing to the horizon; above it the last
    value). `across` and `along` are texture repeats per picture width at the bottom and per unit of depth.
    """
    rows, columns = canvas.grid()
    line = horizon / canvas.height
    depth = (1.001 - line) / np.maximum(rows - line, 0.004)  # (H, 1)
    u = _mirrored((columns - centre) * depth * across * tile.shape[1], tile.shape[1])
    v = _mirrored(depth * along * tile.shape[0], tile.shape[0])
    return tile[np.broadcast_to(v, u.shape), u], depth
