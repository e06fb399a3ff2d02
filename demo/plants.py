"""Trees, and the painter of Forests."""

from __future__ import annotations

import numpy as np

from demo.canvas import Array, Canvas, Colour, Light, Point, mix, noise, pick, profile, scale, smoothstep, vary

_LEAVES: dict[str, tuple[Colour, ...]] = {
    "summer": ((58, 104, 40), (76, 122, 48), (44, 88, 44), (96, 134, 58)),
    "autumn": ((196, 110, 34), (206, 150, 44), (160, 62, 32), (120, 116, 44)),
    "winter": ((206, 214, 220), (188, 196, 204), (150, 158, 156)),
}
_NEEDLES: tuple[Colour, ...] = ((34, 70, 48), (44, 82, 50), (28, 60, 50), (56, 86, 52))


def choose_season(rng: np.random.Generator, light: Light) -> str:
    """Winter where it snows, else summer or, one time in four, autumn."""
    if light.weather == "snow":
        return "winter"
    return "autumn" if rng.random() < 0.25 else "summer"


def paint_crown(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    centre: Point,
    radius: float,
    season: str,
    depth: float = 0.0,
) -> None:
    """The crown of a deciduous tree: a heap of leaf clumps, lit from above."""
    base = vary(rng, pick(rng, _LEAVES[season]), 8)
    x, y = centre
    canvas.ellipse((x, y), (radius, radius * 0.85), light.shade(scale(base, 0.6), depth))
    count = 5 if radius < canvas.unit * 0.02 else 22
    for dx, dy, size in rng.uniform(-1, 1, (count, 3)):
        clump = radius * (0.24 + 0.1 * size)
        tone = 0.85 - 0.3 * dy + 0.12 * size
        place = x + dx * radius * 0.75, y + dy * radius * 0.68
        canvas.ellipse(place, (clump, clump * 0.85), light.shade(scale(base, float(tone)), depth))


def paint_conifer(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    foot: Point,
    tall: float,
    snowy: bool,
    depth: float = 0.0,
) -> None:
    """A spruce or fir of `tall` pixels: tiers of drooping branches."""
    x, y = foot
    base = vary(rng, pick(rng, _NEEDLES), 6)
    dark, bright = light.shade(scale(base, 0.8), depth), light.shade(scale(base, 1.25), depth)
    if snowy:
        bright = light.shade(mix(base, (236, 240, 244), 0.75), depth)
    half = tall * float(rng.uniform(0.17, 0.25))
    canvas.line([(x, y), (x, y - tall * 0.2)], light.shade((70, 50, 36), depth), tall * 0.03)
    tiers = 4 if tall < canvas.unit * 0.08 else 8
    for tier in range(tiers):
        share = tier / tiers
        low, top = y - tall * (0.07 + 0.8 * share), y - tall * min(1.0, 0.34 + 0.8 * share)
        reach = half * (1 - share * 0.88) * float(rng.uniform(0.88, 1.1))
        canvas.polygon([(x - reach, low), (x, top), (x + reach, low), (x, low - tall * 0.03)], dark)
        canvas.polygon([(x - reach, low), (x, top), (x - reach * 0.2, low - tall * 0.03)], bright)


def paint_inside(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Among the trunks: a floor, a canopy, trunks in rows that fade with distance, shafts of light."""
    w, h = canvas.width, canvas.height
    season = choose_season(rng, light)
    rows, columns = canvas.grid()
    horizon = float(rng.uniform(0.5, 0.72))
    leaves = np.array(pick(rng, _LEAVES[season]), np.float32)
    foliage = canvas.noise(rng, 9, 9, 6, 0.75)[..., None]
    back = leaves * (0.55 + 0.9 * foliage) + 40 * foliage**3
    gleam = np.exp(-(((rows - horizon * 0.8) / 0.25) ** 2))[..., None] * float(rng.uniform(0.2, 0.75))
    back = back + (np.array((226, 236, 190), np.float32) - back) * gleam
    floor_colour: Colour = {"winter": (222, 228, 232), "autumn": (150, 92, 40)}.get(season) or (
        pick(rng, ((92, 80, 50), (70, 96, 44), (104, 82, 56)))
    )
    floor = np.array(floor_colour, np.float32) * (0.6 + 0.7 * canvas.noise(rng, 28, 10, 5, 0.8)[..., None])
    line = profile(rng, w, 4)[None, :] * 0.015 + horizon
    ground = smoothstep(np.broadcast_to(rows, (h, w)) - line, -0.01, 0.02)[..., None]
    canvas.put(light.shade_array(back + (floor - back) * ground, 0.5))
    bark = vary(rng, pick(rng, ((74, 56, 42), (96, 84, 70), (58, 46, 38), (200, 196, 186))), 6)
    for layer, count in enumerate((26, 16, 9, int(rng.integers(2, 6)))):
        depth = 1.6 * (1 - layer / 3)
        for x in rng.uniform(-0.03, 1.03, count):
            width = canvas.unit * (0.009 + 0.011 * layer**1.45) * float(rng.uniform(0.7, 1.35))
            foot = h * (horizon + 0.015 + 0.11 * layer * float(rng.uniform(0.8, 1.2)))
            _paint_trunk(canvas, rng, light, (float(x) * w, foot), width, vary(rng, bark, 10), depth)
    edge = (profile(rng, w, 7) * 0.08 + float(rng.uniform(-0.02, 0.2)))[None, :]
    hanging = smoothstep(edge - rows, -0.06, 0.08) * smoothstep(canvas.noise(rng, 14, 14, 5, 0.8), 0.3, 0.55)
    canvas.put(light.shade_array(leaves * (0.4 + 0.9 * canvas.noise(rng, 20, 20, 4, 0.8)[..., None])), hanging)
    if light.time != "night" and light.weather in ("clear", "fog") and rng.random() < 0.5:
        slant = float(rng.uniform(-0.7, 0.7))
        beams = profile(rng, 256, 9)[((columns + slant * rows) * 90 + 80).astype(np.int32) % 256]
        sun = np.array((255, 236, 170), np.float32) * np.array((1.0, 0.9, 0.8), np.float32)
        shafts = smoothstep(beams, 0.3, 1.0) * (1 - rows) * 0.5
        canvas.put(np.broadcast_to(sun, (h, w, 3)), shafts)
    return {"trees", "trunks", season}


def _paint_trunk(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    foot: Point,
    width: float,
    bark: Colour,
    depth: float,
) -> None:
    x, y = foot
    lean = canvas.unit * float(rng.normal(0, 0.02))
    flare = width * 0.35
    outline = [(x - width / 2 - flare, y), (x - width * 0.45, y - width), (x - width * 0.36 + lean, -5)]
    outline += [(x + width * 0.36 + lean, -5), (x + width * 0.45, y - width), (x + width / 2 + flare, y)]
    canvas.polygon(outline, light.shade(bark, depth))
    canvas.polygon(
        [
            (x + width * 0.1, y),
            (x + width * 0.08 + lean, -5),
            (x + width * 0.36 + lean, -5),
            (x + width * 0.5, y),
        ],
        light.shade(scale(bark, 0.68), depth),
    )
    if width > canvas.unit * 0.02:
        for share, length, offset in rng.random((14, 3)):
            top = y * share
            middle = x + lean * (1 - share) + (offset - 0.5) * width * 0.6
            mark = light.shade(scale(bark, 0.5), depth)
            canvas.line([(middle, top), (middle, top + width * length)], mark, width * 0.05)


def paint_slope(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Rank upon rank of conifers, far to near, a strip of sky above."""
    w, h = canvas.width, canvas.height
    snowy = light.weather == "snow"
    top = float(rng.uniform(0.12, 0.45))
    ranks = int(rng.integers(4, 7))
    for rank in range(ranks):
        share = rank / (ranks - 1)
        depth = 1.3 * (1 - share)
        tall = h * (0.1 + 0.42 * share**1.3) * float(rng.uniform(0.85, 1.15))
        line = h * (top + 0.12 + (0.95 - top) * share) + profile(rng, w, 3) * h * 0.05
        floor: Colour = (214, 220, 226) if snowy else (40, 64, 38)
        canvas.put(np.broadcast_to(np.array(light.shade(floor, depth), np.float32), (h, w, 3)), canvas.below(line))
        step = tall * float(rng.uniform(0.15, 0.24))
        for x in np.arange(-step, w + step, step):
            x += float(rng.normal(0, step * 0.4))
            y = float(line[min(w - 1, max(0, int(x)))]) + tall * 0.06
            paint_conifer(canvas, rng, light, (x, y), tall * float(rng.uniform(0.65, 1.2)), snowy, depth)
    return {"trees", "conifers"} | ({"snow"} if snowy else set())


def paint_from_above(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Crowns close together, straight from above; sometimes a river or a clearing."""
    w, h = canvas.width, canvas.height
    season = choose_season(rng, light)
    canvas.put(np.broadcast_to(np.array(light.shade((22, 36, 22)), np.float32), (h, w, 3)))
    step = canvas.unit * float(rng.uniform(0.05, 0.11))
    tones = noise(rng, 32, 32, (3, 3), 3)
    needles = float(rng.uniform(0, 0.8))
    for y in np.arange(0, h + step, step * 0.8):
        for x in np.arange(0, w + step, step):
            place = x + float(rng.normal(0, step * 0.28)), y + float(rng.normal(0, step * 0.28))
            tone = tones[min(31, int(y / h * 31)), min(31, int(x / w * 31))]
            radius = step * float(rng.uniform(0.5, 0.78))
            if tone < needles:
                _paint_spruce_from_above(canvas, rng, light, place, radius)
            else:
                paint_crown(canvas, rng, light, place, radius, season)
    if rng.random() < 0.3:
        _paint_river(canvas, rng, light)
        return {"trees", "river", season}
    return {"trees", season}


def _paint_spruce_from_above(
    canvas: Canvas, rng: np.random.Generator, light: Light, centre: Point, radius: float
) -> None:
    base = vary(rng, pick(rng, _NEEDLES), 8)
    white = 0.6 if light.weather == "snow" else 0.0
    turn = float(rng.uniform(0, 1))
    for size, tone in ((1.0, 0.8), (0.66, 1.15), (0.33, 1.6)):
        colour = light.shade(mix(scale(base, tone), (236, 240, 244), white * (1.4 - size)))
        angles = np.arange(18) * (np.pi / 9) + turn
        reach = radius * size * np.where(np.arange(18) % 2, 1.0, 0.6)
        canvas.polygon(zip(centre[0] + reach * np.cos(angles), centre[1] + reach * np.sin(angles), strict=True), colour)


def _paint_river(canvas: Canvas, rng: np.random.Generator, light: Light) -> None:
    rows, columns = canvas.grid()
    bend: Array = profile(rng, canvas.height, 2, 4)[:, None] * 0.18 + float(rng.uniform(0.3, 0.7))
    width = float(rng.uniform(0.03, 0.07))
    water = np.broadcast_to(np.array(light.shade((66, 108, 118)), np.float32), (canvas.height, canvas.width, 3))
    canvas.put(water, smoothstep(-np.abs(columns - bend), -width, -width * 0.85) + 0 * rows)


def paint_edge(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """The edge of a wood: crowns on trunks behind a meadow."""
    w, h = canvas.width, canvas.height
    season = choose_season(rng, light)
    ground = h * float(rng.uniform(0.72, 0.9))
    for rank in range(4):
        depth = 0.9 * (1 - rank / 3)
        radius = canvas.unit * (0.07 + 0.025 * rank)
        for x in np.arange(-radius, w + radius, radius * 0.85):
            x += float(rng.normal(0, radius * 0.3))
            y = ground - h * (0.5 - 0.08 * rank) * float(rng.uniform(0.75, 1.1))
            stem = light.shade((66, 52, 42), depth)
            canvas.line([(x, ground), (x + radius * 0.1, y)], stem, radius * 0.16)
            if rng.random() < 0.2:
                tall = ground - y + radius
                paint_conifer(canvas, rng, light, (x, ground), tall, season == "winter", depth)
            else:
                paint_crown(canvas, rng, light, (x, y), radius * float(rng.uniform(0.8, 1.25)), season, depth)
                paint_crown(canvas, rng, light, (x, y + radius), radius * 0.9, season, depth)
    meadow: Colour = {"winter": (228, 232, 236), "autumn": (150, 130, 66)}.get(season, (92, 128, 56))
    line = np.full(w, ground, np.float32) + profile(rng, w, 3) * h * 0.015
    grass = np.array(meadow, np.float32) * (0.75 + 0.5 * canvas.noise(rng, 30, 12, 5, 0.8)[..., None])
    canvas.put(light.shade_array(grass), canvas.below(line))
    return {"trees", season}
