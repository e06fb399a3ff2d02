"""Time of day, weather and camera faults: everything in a scene that is not its subject."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from demo.canvas import Array, Canvas, Colour, Light, as_mask, mix, smoothstep, to_rgb

TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "cloudy", "fog", "rain", "snow")
_TIME_SHARES = (0.64, 0.19, 0.17)
_WEATHER_SHARES = (0.38, 0.24, 0.13, 0.13, 0.12)


def choose_light(rng: np.random.Generator) -> Light:
    """A time of day and a weather with the colours that go with them."""
    time = TIMES[int(rng.choice(len(TIMES), p=_TIME_SHARES))]
    weather = WEATHERS[int(rng.choice(len(WEATHERS), p=_WEATHER_SHARES))]
    grey = {"clear": 0.0, "cloudy": 0.6, "fog": 0.95, "rain": 0.85, "snow": 0.8}[weather]
    level = float(rng.uniform(0.85, 1.1))
    top: Colour
    low: Colour
    tint: Colour
    if time == "day":
        top = (rng.uniform(40, 90), rng.uniform(105, 150), rng.uniform(180, 225))
        low = (rng.uniform(165, 205), rng.uniform(200, 220), rng.uniform(220, 238))
        overcast = float(rng.uniform(150, 215))
        top, low = (
            mix(top, (overcast * 0.92, overcast * 0.95, overcast), grey),
            mix(low, (overcast,) * 3, grey),
        )
        tint = mix((level, level * 0.98, level * 0.94), (level * 0.78, level * 0.8, level * 0.84), grey)
    elif time == "sunset":
        top = (rng.uniform(50, 110), rng.uniform(50, 90), rng.uniform(100, 150))
        low = (rng.uniform(235, 255), rng.uniform(120, 180), rng.uniform(60, 110))
        top, low = mix(top, (110, 100, 110), grey * 0.5), mix(low, (200, 150, 130), grey * 0.6)
        tint = mix((0.98, 0.74, 0.62), (0.72, 0.62, 0.6), grey)
    else:
        top = (rng.uniform(4, 14), rng.uniform(8, 20), rng.uniform(22, 45))
        low = (rng.uniform(20, 45), rng.uniform(28, 50), rng.uniform(55, 85))
        top, low = mix(top, (26, 28, 36), grey), mix(low, (48, 50, 60), grey)
        moon = float(rng.uniform(0.32, 0.52))
        tint = (moon * 0.8, moon * 0.92, moon * 1.25)
    density = {"clear": rng.uniform(0.3, 0.8), "cloudy": rng.uniform(0.4, 0.9), "fog": rng.uniform(1.2, 2.2)}
    return Light(time, weather, tint, mix(low, top, 0.15), float(density.get(weather, rng.uniform(0.8, 1.5))), top, low)


def paint_sky(canvas: Canvas, rng: np.random.Generator, light: Light, horizon: float) -> None:
    """Fill the canvas with sky: gradient down to `horizon` (a y), clouds, sun or moon, stars."""
    rows, _ = canvas.grid()
    share = np.clip(rows * canvas.height / max(horizon, 1.0), 0, 1)[..., None] ** 1.2
    top, low = np.array(light.sky_top, np.float32), np.array(light.sky_low, np.float32)
    sky = np.broadcast_to(top + (low - top) * share, (canvas.height, canvas.width, 3)).copy()
    if light.dark and light.weather == "clear":
        stars = rng.random((canvas.height, canvas.width), dtype=np.float32) > 0.9988
        sky[stars] += rng.uniform(60, 180)
    cover = {"clear": rng.uniform(0.62, 0.9), "cloudy": rng.uniform(0.3, 0.45)}.get(light.weather)
    if cover is not None:
        shapes = canvas.noise(rng, rng.uniform(3, 6), rng.uniform(2, 4), 5, 0.55)
        _add_clouds(sky, shapes, light, cover)
    if light.weather == "clear" and rng.random() < 0.5:
        _add_disc(sky, rng, light, horizon)
    canvas.put(sky)


def _add_clouds(sky: Array, shapes: Array, light: Light, cover: float) -> None:
    bright: Colour = {"day": (250, 250, 252), "sunset": (255, 175, 130), "night": (48, 52, 66)}[light.time]
    shadow = mix(bright, light.sky_top, 0.45)
    amount = smoothstep(shapes, cover, cover + 0.25)[..., None] * 0.9
    inner = smoothstep(shapes, cover + 0.15, cover + 0.5)[..., None]
    colour = np.array(bright, np.float32) + (np.array(shadow, np.float32) - np.array(bright, np.float32)) * inner
    sky += (colour - sky) * amount


def _add_disc(sky: Array, rng: np.random.Generator, light: Light, horizon: float) -> None:
    height, width = sky.shape[:2]
    x, y = float(rng.uniform(0.1, 0.9)) * width, horizon * float(rng.uniform(0.1, 0.5))
    colour: Colour = (215, 220, 230) if light.dark else (255, 252, 235)
    if light.time == "sunset":
        y, colour = horizon * float(rng.uniform(0.7, 0.95)), (255, 225, 150)
    radius = float(np.sqrt(width * height)) * float(rng.uniform(0.015, 0.035))
    rows, columns = np.ogrid[:height, :width]
    away = (np.hypot(rows - y, columns - x) / radius).astype(np.float32)
    amount = smoothstep(-away, -1.1, -0.9) + 0.45 * np.exp(-0.6 * np.maximum(away - 1, 0))
    sky += (np.array(colour, np.float32) - sky) * np.clip(amount, 0, 1)[..., None]


def add_weather(image: Image.Image, rng: np.random.Generator, light: Light) -> Image.Image:
    """Fog veil, rain streaks or snowflakes in front of everything."""
    if light.weather == "fog":
        veil = Image.new("RGB", image.size, to_rgb(light.haze))
        rows = np.linspace(1, 0.25, image.height, dtype=np.float32)[:, None]
        amount = np.broadcast_to(rows * float(rng.uniform(0.3, 0.62)), (image.height, image.width))
        return Image.composite(veil, image, as_mask(amount))
    if light.weather not in ("rain", "snow"):
        return image
    unit = float(np.sqrt(image.width * image.height))
    drops = Image.new("L", image.size)
    draw = ImageDraw.Draw(drops)
    if light.weather == "rain":
        slant = float(rng.uniform(-0.3, 0.3))
        for x, y, size in rng.random((int(rng.integers(150, 420)), 3)):
            length = unit * (0.02 + 0.05 * size)
            start = x * image.width, y * image.height
            fill = int(60 + 90 * size)
            draw.line(
                (*start, start[0] + slant * length, start[1] + length),
                fill=fill,
                width=max(1, round(unit / 400)),
            )
        drops = drops.filter(ImageFilter.GaussianBlur(unit / 900))
    else:
        for x, y, size in rng.random((int(rng.integers(150, 500)), 3)):
            radius = unit * (0.0015 + 0.006 * size**3)
            cx, cy = x * image.width, y * image.height
            draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=int(150 + 105 * size))
        drops = drops.filter(ImageFilter.GaussianBlur(unit / 700))
    level = 130 if light.dark else 235
    return Image.composite(Image.new("RGB", image.size, (level, level, level)), image, drops)


def degrade(
    image: Image.Image, rng: np.random.Generator, blur: bool | None = None
) -> tuple[Image.Image, frozenset[str], int]:
    """Camera faults, at random: returns the image, the names of the faults, and a JPEG quality.

    Args:
        blur: force a blurred (True) or an unblurred (False) picture; by default one in four is blurred.
    """
    faults = set()
    unit = float(np.sqrt(image.width * image.height))
    if rng.random() < 0.04:
        image = ImageChops.multiply(image, image)
        faults.add("dark")
    blurred = bool(rng.random() < 0.25) if blur is None else blur
    radius, kind = float(rng.uniform(0.005, 0.019)) * unit, rng.random()
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(radius) if kind < 0.75 else ImageFilter.BoxBlur(radius * 1.3))
        faults.add("blurry")
    if rng.random() < 0.2:
        image = _add_grain(image, rng)
        faults.add("noisy")
    if rng.random() < 0.06:
        image = ImageOps.grayscale(image).convert("RGB")
        faults.add("black and white")
    if rng.random() < 0.12:
        level = float(rng.uniform(60, 190))
        image = Image.blend(image, Image.new("RGB", image.size, (int(level),) * 3), float(rng.uniform(0.2, 0.5)))
        faults.add("low contrast")
    quality = int(rng.integers(72, 96))
    if rng.random() < 0.15:
        quality = int(rng.integers(8, 24))
        faults.add("jpeg corrupted")
    return image, frozenset(faults), quality


def _add_grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    strength = float(rng.uniform(8, 30))
    shape = (image.height, image.width, 3) if rng.random() < 0.5 else (image.height, image.width, 1)
    grain = rng.standard_normal(shape, dtype=np.float32) * np.float32(strength)
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))
