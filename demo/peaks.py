"""Painters of the two high classes: Mountains and Glacier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from demo.canvas import (
    Array,
    Canvas,
    Colour,
    Light,
    mix,
    noise,
    pick,
    profile,
    scale,
    smoothstep,
    vary,
)
from demo.plants import paint_conifer

_ROCKS: tuple[Colour, ...] = ((116, 106, 98), (96, 98, 104), (138, 118, 100), (104, 92, 84), (126, 124, 122))
_SNOW = np.array((238, 243, 248), np.float32)
_ICE = np.array((214, 232, 242), np.float32)
_CREVASSE = np.array((38, 112, 168), np.float32)


def _ridge(rng: np.random.Generator, width: int, level: float, relief: float, pointed: bool) -> Array:
    """Heights of a ridge line above the bottom, `(width,)` in picture heights."""
    line = profile(rng, width, float(rng.uniform(2, 5)), 8, 0.52) * relief * 0.4
    if pointed:
        x = np.linspace(0, 1, width, dtype=np.float32)
        peaks = [np.zeros(width, np.float32)]
        for _ in range(int(rng.integers(1, 4))):
            slope = relief / rng.uniform(0.14, 0.34)
            height = relief * rng.uniform(0.75, 1.25)
            peaks.append((height - slope * np.abs(x - rng.uniform(0.08, 0.92)) ** 0.95).astype(np.float32))
        line = line * 0.5 + np.max(peaks, axis=0)
    return (level + line).astype(np.float32)


def _rock_face(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    ridge: Array,
    rock: Colour,
    depth: float,
    snow_line: float,
) -> None:
    """Everything below a ridge: rock lit from one side, gullies, snow above `snow_line` (picture heights)."""
    h, w = canvas.height, canvas.width
    top = int(np.clip((1 - ridge.max()) * h - 1, 0, h - 8))  # no work above the highest point
    rows = canvas.grid()[0][top:]
    relief = noise(rng, h - top, w, (5 * (h - top) / h, 6), 6, 0.62)
    drop = np.maximum(ridge[None, :] - (1 - rows), 0)  # (H, W) below the ridge
    side = float(rng.choice([-1, 1]))
    gullies = profile(rng, 1024, 12, 4, 0.5)
    lean = np.gradient(ridge) * w  # buttresses run down the way the ridge does
    along = (np.arange(w, dtype=np.float32) / w)[None, :] - 0.25 * drop * np.tanh(lean * 0.6)[None, :]
    warped = relief * 0.42 + 0.08 * gullies[np.clip((along + 0.2 * relief) * 900 + 60, 0, 1023).astype(np.int32)]
    slope = np.gradient(warped, axis=1) * w * side * 0.11 + np.tanh(lean)[None, :] * side * 0.16 * np.exp(-drop * 4)
    lit = np.clip(0.88 + slope, 0.42, 1.3)
    height = (1 - rows) + (relief - 0.5) * 0.22 + slope * 0.03
    snow = smoothstep(height - snow_line, -0.015, 0.03)[..., None]
    stone = np.array(rock, np.float32) * (0.7 + 0.6 * relief[..., None])
    stone += (_SNOW - stone) * snow
    stone *= np.where(snow > 0.5, 0.25 + 0.75 * lit[..., None], lit[..., None])
    canvas.put(light.shade_array(stone, depth), canvas.below((1 - ridge) * h, top), top)


def paint_range(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Ridges behind ridges under rocky peaks; in front a meadow, a wood or a lake."""
    w = canvas.width
    layers = int(rng.integers(2, 5))
    rock = vary(rng, pick(rng, _ROCKS), 8)
    crest, foot = float(rng.uniform(0.42, 0.62)), float(rng.uniform(0.12, 0.25))
    snow_line = float(rng.choice([0.5, 0.6, 0.72, 2.0])) if light.weather != "snow" else 0.25
    for layer in range(layers):
        share = layer / max(1, layers - 1)
        level = crest + (foot - crest) * share
        relief = float(rng.uniform(0.16, 0.36)) * (1 - 0.55 * share)
        pointed = bool(layer < layers - 1 or rng.random() < 0.3)
        green = (70, 92, 58) if snow_line > 0.3 else (150, 158, 164)
        colour = mix(rock, green, share**1.5 * 0.9)
        ridge = _ridge(rng, w, level, relief, pointed)
        _rock_face(canvas, rng, light, ridge, colour, 1.2 * (1 - share), snow_line + 0.02 * layer)
    things = {"snow"} if snow_line < 1 else set()
    return things | _paint_foreground(canvas, rng, light, foot)


def paint_peak(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """One great peak that fills the frame."""
    w = canvas.width
    rock = vary(rng, pick(rng, _ROCKS), 8)
    snow_line = float(rng.uniform(0.4, 0.75)) if rng.random() < 0.7 else 2.0
    _rock_face(canvas, rng, light, _ridge(rng, w, 0.35, 0.2, True), rock, 1.0, snow_line)
    x = np.linspace(0, 1, w, dtype=np.float32)
    centre, half = rng.uniform(0.3, 0.7), rng.uniform(0.45, 0.8, 2)
    away = np.where(x < centre, (centre - x) / half[0], (x - centre) / half[1])
    top = float(rng.uniform(0.8, 0.95))
    ridge = (top - 0.62 * away**0.85 + profile(rng, w, 8, 7) * 0.035).astype(np.float32)
    _rock_face(canvas, rng, light, ridge, rock, 0.15, snow_line)
    foot = float(rng.uniform(0.05, 0.2))
    return ({"snow"} if snow_line < 1 else set()) | {"peak"} | _paint_foreground(canvas, rng, light, foot)


def paint_ridges(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Bare silhouettes, each paler than the one before it."""
    layers = int(rng.integers(4, 7))
    tone = vary(rng, (60, 78, 96), 10)
    for layer in range(layers):
        share = layer / (layers - 1)
        ridge = _ridge(rng, canvas.width, 0.68 - 0.58 * share, 0.2, bool(rng.random() < 0.6))
        _rock_face(canvas, rng, light, ridge, scale(tone, 1.15 - 0.55 * share), 1.9 * (1 - share), 2.0)
    return {"ridges"}


def _paint_foreground(canvas: Canvas, rng: np.random.Generator, light: Light, foot: float) -> set[str]:
    w, h = canvas.width, canvas.height
    kind = rng.random()
    snowy = light.weather == "snow"
    if kind < 0.25:
        shore = int(h * (1 - foot))
        above = canvas.image.crop((0, max(0, shore - (h - shore)), w, shore))
        mirror = np.asarray(ImageOps.flip(above).resize((w, h - shore)), np.float32)
        ripple = noise(rng, h - shore, w, (30, 4), 3)[..., None]
        water = mirror * (0.6 + 0.25 * ripple) + np.array(light.shade((30, 60, 80)), np.float32) * 0.25
        canvas.image.paste(Image.fromarray(np.clip(water, 0, 255).astype(np.uint8)), (0, shore))
        return {"lake"}
    if kind < 0.7:
        colour: Colour = (226, 232, 238) if snowy else vary(rng, (98, 122, 62), 10)
        line = (h * (1 - foot * 0.6) + profile(rng, w, 3) * h * 0.03).astype(np.float32)
        grass = np.array(colour, np.float32) * (0.75 + 0.5 * canvas.noise(rng, 30, 12, 5, 0.8)[..., None])
        canvas.put(light.shade_array(grass), canvas.below(line))
        if kind > 0.5:
            for x in rng.uniform(0, w, int(rng.integers(4, 14))):
                y = float(line[min(w - 1, int(x))]) + h * 0.02
                paint_conifer(canvas, rng, light, (float(x), y), h * float(rng.uniform(0.08, 0.2)), snowy)
            return {"meadow", "trees"}
        return {"meadow"}
    return set()


def _on_ice(light: Light) -> Light:
    """The light as ice takes it: it keeps its blue under a red sky."""
    return replace(light, tint=mix(light.tint, (0.8, 0.86, 0.95), 0.6)) if light.time == "sunset" else light


def paint_tongue(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """A valley glacier: an ice tongue, crevassed across and striped along, between dark rock walls."""
    w, h = canvas.width, canvas.height
    rows, columns = canvas.grid()
    light = _on_ice(light)
    rock = scale(vary(rng, pick(rng, _ROCKS), 8), 0.7)
    head = float(rng.uniform(0.45, 0.66))
    _rock_face(canvas, rng, light, _ridge(rng, w, head + 0.06, 0.16, True), rock, 0.9, float(rng.uniform(0.45, 0.6)))
    x = np.linspace(0, 1, w, dtype=np.float32)
    source, mouth = float(rng.uniform(0.35, 0.65)), float(rng.uniform(0.35, 0.65))
    walls = np.abs(x - source) ** 0.9 * float(rng.uniform(0.5, 0.9)) + head - 0.14 + profile(rng, w, 7, 6) * 0.03
    _rock_face(canvas, rng, light, walls.astype(np.float32), rock, 0.3, float(rng.uniform(0.6, 0.9)))
    down = np.clip((rows - (1 - head)) / head, 0, 1)  # (H, 1) 0 at the head, 1 at the bottom edge
    centre = source + (mouth - source) * down + float(rng.uniform(-0.1, 0.1)) * np.sin(down * 5)
    half = float(rng.uniform(0.1, 0.2)) + float(rng.uniform(0.25, 0.55)) * down**1.2
    edge = profile(rng, h, 9, 6)[:, None] * 0.025 * (0.3 + down)
    across = (columns - centre) / half
    inside = smoothstep(1 - np.abs(across) + edge, 0.0, 0.05) * (rows > 1 - head)
    canvas.put(light.shade_array(_ice_surface(canvas, rng, across, down), 0.7 * (1 - down)), inside)
    return {"ice", "rock", "crevasses"}


def _ice_surface(canvas: Canvas, rng: np.random.Generator, across: Array, down: Array) -> Array:
    """Ice in its own coordinates: `across` -1..1 between the banks `(H, W)`, `down` 0..1 `(H, 1)`."""
    tile = noise(rng, 512, 256, (40, 5), 4, 0.6)
    bow = float(rng.uniform(0.02, 0.14))
    flow = np.log1p(down * 7) / np.log(8.0) - bow * across**2
    v = (flow * float(rng.uniform(300, 520))).astype(np.int32) % 512
    u = (across * 70 + 128).astype(np.int32) % 256
    texture = tile[v, u]
    edge = float(rng.uniform(0.44, 0.54))
    cracks = smoothstep(texture, edge, edge + 0.12)[..., None]
    ice = _ICE * (0.84 + 0.2 * canvas.noise(rng, 12, 12, 5, 0.7)[..., None])
    rims = smoothstep(texture, edge - 0.16, edge - 0.02)[..., None]
    ice = ice * (1 - 0.16 * rims) + (_CREVASSE - ice) * cracks * 0.85
    for _ in range(int(rng.integers(0, 4))):
        place, width = float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.02, 0.06))
        stripe = np.exp(-(((across - place - 0.04 * np.sin(down * 9)) / width) ** 2))[..., None]
        ice = ice + (np.array((96, 90, 86), np.float32) - ice) * stripe * 0.75
    return ice


def paint_ice_front(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """The calving face of a glacier: a wall of ice, split by blue clefts, over water with floes."""
    w, h = canvas.width, canvas.height
    rows, columns = canvas.grid()
    light = _on_ice(light)
    if rng.random() < 0.6:
        rock = scale(vary(rng, pick(rng, _ROCKS), 8), 0.75)
        _rock_face(canvas, rng, light, _ridge(rng, w, 0.68, 0.2, True), rock, 1.0, float(rng.uniform(0.6, 0.85)))
    crest, shore = float(rng.uniform(0.22, 0.42)), float(rng.uniform(0.68, 0.88))
    top = crest + profile(rng, w, 6, 8, 0.62) * 0.05
    drift = (canvas.noise(rng, 4, 7, 5, 0.6) - 0.5) * 0.13
    stripes = profile(rng, 1024, float(rng.uniform(9, 20)), 5, 0.6)
    cleft = stripes[np.clip((columns + drift) * 900 + 60, 0, 1023).astype(np.int32)]
    tall = np.clip((rows - top[None, :]) / (shore - crest), 0, 1)
    ledges = canvas.noise(rng, 18, 9, 5, 0.65)
    lit = 0.82 + 0.3 * ledges + np.clip(np.gradient(cleft, axis=1) * w * 0.004, -0.22, 0.14)
    ice = _ICE * lit[..., None]
    cracks = smoothstep(-np.abs(cleft), -0.2, -0.03) * smoothstep(ledges, 0.15, 0.5)
    hollows = 0.6 * smoothstep(ledges, 0.55, 0.85) + 0.45 * smoothstep(cleft, 0.5, 0.9)
    blue = np.clip(cracks + hollows, 0, 0.95)[..., None]
    ice = ice + (_CREVASSE * (0.75 + 0.5 * ledges[..., None]) - ice) * blue
    ice = ice * (1 - 0.18 * tall[..., None])
    canvas.put(light.shade_array(ice, 0.15), canvas.below((top * h).astype(np.float32)))
    line = (shore * h + profile(rng, w, 6) * h * 0.006).astype(np.float32)
    if rng.random() < 0.75:
        ripples = canvas.noise(rng, 70, 7, 3, 0.6)[..., None]
        water = np.array((64, 104, 122), np.float32) * (0.7 + 0.6 * ripples)
        canvas.put(light.shade_array(water), canvas.below(line))
        _paint_floes(canvas, rng, light, shore)
        return {"ice", "icebergs", "water"}
    gravel = np.array((110, 104, 98), np.float32) * (0.5 + canvas.noise(rng, 60, 60, 3, 0.8)[..., None])
    canvas.put(light.shade_array(gravel), canvas.below(line))
    return {"ice", "rock"}


def _paint_floes(canvas: Canvas, rng: np.random.Generator, light: Light, shore: float) -> None:
    w, h = canvas.width, canvas.height
    for place in np.sort(rng.random(int(rng.integers(3, 22)))):
        y = h * (shore + 0.02 + (0.98 - shore) * place)
        x, size = w * float(rng.random()), canvas.unit * (0.015 + 0.06 * place) * float(rng.uniform(0.5, 1.4))
        jag = rng.uniform(0.25, 0.9, 5) * size * 0.7
        crest = [(x - size + i * size / 2, y - float(rise)) for i, rise in enumerate(jag)]
        canvas.polygon([(x - size * 1.2, y), *crest, (x + size * 1.2, y)], light.shade((226, 238, 246)))
        foot = [
            (x - size * 1.2, y),
            (x + size * 1.2, y),
            (x + size, y + size * 0.18),
            (x - size, y + size * 0.18),
        ]
        canvas.polygon(foot, light.shade((92, 158, 196)))


def paint_seracs(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """An icefall: blocks of ice heaped towards the viewer, white above and blue in the clefts."""
    w, h = canvas.width, canvas.height
    light = _on_ice(light)
    top = float(rng.uniform(0.05, 0.4))
    base = np.array((104, 160, 200), np.float32) * (0.6 + 0.6 * canvas.noise(rng, 10, 10, 4)[..., None])
    canvas.put(
        light.shade_array(base, 0.5),
        canvas.below((top * h + profile(rng, w, 5) * h * 0.05).astype(np.float32)),
    )
    ranks = int(rng.integers(6, 11))
    for rank in range(ranks):
        share = rank / (ranks - 1)
        depth, size = 1.0 * (1 - share), canvas.unit * (0.035 + 0.13 * share)
        y = h * (top + (1.1 - top) * share)
        for x in np.arange(-size, w + size, size * float(rng.uniform(0.75, 1.2))):
            tone = float(rng.uniform(0.86, 1.04))
            _paint_block(canvas, rng, light, (x + float(rng.normal(0, size * 0.2)), y), size, tone, depth)
    pixels = canvas.pixels()
    grain = 0.86 + 0.28 * canvas.noise(rng, 40, 40, 4, 0.8)[..., None]
    canvas.put(pixels * grain, canvas.below(np.full(w, max(0.0, top - 0.08) * h, np.float32)))
    return {"ice", "crevasses"}


def _paint_block(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    place: tuple[float, float],
    size: float,
    tone: float,
    depth: float,
) -> None:
    (x, y), jitter = place, rng.normal(0, size * 0.1, 12)
    tall = size * float(rng.uniform(0.4, 1.3))
    left, right = x - size * 0.55, x + size * 0.55
    shoulder, peak = (left + jitter[0], y - tall * 0.6), (x + jitter[1] * 2, y - tall + jitter[2])
    far, deep = (right + jitter[3], y - tall * 0.65 + jitter[4]), y + size * 0.7
    middle = (x + jitter[5] * 2, y - tall * 0.4 + jitter[6])
    white, face, shade = ((236, 243, 249), (176, 214, 236), (70, 134, 186))
    canvas.polygon([shoulder, peak, far, middle], light.shade(scale(white, tone), depth))
    canvas.polygon([shoulder, middle, (middle[0], deep), (left, deep)], light.shade(scale(face, tone), depth))
    canvas.polygon([middle, far, (right, deep), (middle[0], deep)], light.shade(scale(shade, tone), depth))
