"""Painters of Sea."""

from __future__ import annotations

import numpy as np

from demo.canvas import (
    Canvas,
    Colour,
    Light,
    as_mask,
    ground_texture,
    mix,
    noise,
    pick,
    profile,
    scale,
    smoothstep,
    vary,
)

_WATERS: tuple[Colour, ...] = (
    (28, 92, 132),
    (24, 112, 138),
    (40, 82, 112),
    (52, 124, 140),
    (30, 70, 100),
    (62, 100, 104),
)


def _paint_water(canvas: Canvas, rng: np.random.Generator, light: Light, horizon: float) -> Colour:
    """Waves from the bottom edge to the horizon (a y), with the sky in them; returns the water's colour."""
    grey = 0.55 if light.weather in ("cloudy", "rain", "fog", "snow") else 0.0
    colour = mix(vary(rng, pick(rng, _WATERS), 8), (74, 92, 100), grey * float(rng.random()))
    tile = noise(rng, 256, 256, (32, 9), 4, 0.62)
    waves, depth = ground_texture(
        canvas, tile, horizon, across=float(rng.uniform(0.5, 1.0)), along=float(rng.uniform(0.2, 0.6))
    )
    swell, _ = ground_texture(canvas, noise(rng, 256, 256, (6, 3), 2), horizon, across=0.25, along=0.08)
    strength = float(rng.uniform(0.5, 1.1)) / depth**0.35
    height = (0.7 * waves + 0.3 * swell - 0.5) * strength  # (H, W)
    sky = np.array(mix(light.sky_low, light.sky_top, 0.4), np.float32)
    deep = np.array(light.shade(colour), np.float32)
    far = np.clip((depth - 1) / 14, 0, 0.65)[..., None]
    pixels = deep * (1 + 1.1 * height[..., None])
    pixels = pixels + (sky - pixels) * (far + np.clip(height, 0, 0.35)[..., None])
    rough = float(rng.uniform(0.22, 0.6))
    foam = smoothstep(height, rough, rough + 0.12) * np.clip(1.6 - depth * 0.12, 0, 1)
    pixels += (np.array(light.shade((240, 246, 248)), np.float32) - pixels) * (foam * 0.85)[..., None]
    if light.weather == "clear" and rng.random() < (0.85 if light.time != "day" else 0.3):
        _, columns = canvas.grid()
        path = np.exp(-(((columns - float(rng.uniform(0.2, 0.8))) / (0.05 + 0.12 / depth)) ** 2))
        glitter = path * smoothstep(waves, 0.45, 0.75)
        glow: Colour = {"day": (255, 255, 245), "sunset": (255, 190, 110), "night": (150, 165, 195)}[light.time]
        pixels += (np.array(glow, np.float32) - pixels) * (glitter * 0.8)[..., None]
    canvas.put(
        light.shade_array(pixels / np.array(light.tint, np.float32), np.minimum(depth / 25, 1.0) * 0.7),
        canvas.below(np.full(canvas.width, horizon, np.float32)),
    )
    return colour


def paint_open_sea(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Water to the horizon, sometimes with boats, a far coast or gulls."""
    w, h = canvas.width, canvas.height
    horizon = h * float(rng.uniform(0.25, 0.62))
    if rng.random() < 0.25:
        coast = (horizon - h * np.abs(profile(rng, w, 3)) * 0.05 * np.linspace(1.4, -0.6, w)).astype(np.float32)
        tone = np.array(light.shade((84, 100, 84), 1.2), np.float32)
        canvas.put(np.broadcast_to(tone, (h, w, 3)), canvas.below(coast))
    _paint_water(canvas, rng, light, horizon)
    things = {"waves", "horizon"}
    if rng.random() < 0.45:
        for share in np.sort(rng.random(int(rng.integers(1, 4)))):
            size = canvas.unit * (0.03 + 0.11 * share)
            y = horizon + (h - horizon) * 0.45 * share**1.5 + size * 0.1
            _paint_boat(canvas, rng, light, (w * float(rng.uniform(0.08, 0.92)), y), size, 0.8 * (1 - share))
        things.add("boats")
    if light.time != "night" and rng.random() < 0.2:
        for x, y in rng.random((int(rng.integers(3, 9)), 2)):
            _paint_gull(canvas, light, (x * w, y * horizon * 0.9), canvas.unit * 0.012)
        things.add("birds")
    return things


def _paint_boat(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    place: tuple[float, float],
    size: float,
    depth: float,
) -> None:
    x, y = place
    hull = light.shade(vary(rng, pick(rng, ((240, 240, 240), (150, 40, 36), (40, 60, 110), (90, 60, 40))), 8), depth)
    tip = size * float(rng.choice([-0.65, 0.65]))
    deck = [(x - size * 0.45, y - size * 0.16), (x + size * 0.45, y - size * 0.16)]
    canvas.polygon([(x + tip, y - size * 0.2), *(deck if tip < 0 else deck[::-1])], hull)
    canvas.polygon([*deck, (x + size * 0.35, y), (x - size * 0.35, y)], hull)
    if rng.random() < 0.65:
        sail = light.shade(vary(rng, (244, 240, 230), 6), depth)
        canvas.line([(x, y - size * 0.16), (x, y - size * 1.25)], light.shade((70, 60, 50), depth), size * 0.03)
        canvas.polygon(
            [
                (x + size * 0.04, y - size * 1.2),
                (x + size * 0.5, y - size * 0.26),
                (x + size * 0.04, y - size * 0.26),
            ],
            sail,
        )
        canvas.polygon(
            [
                (x - size * 0.04, y - size * 1.1),
                (x - size * 0.36, y - size * 0.26),
                (x - size * 0.04, y - size * 0.26),
            ],
            scale(sail, 0.86),
        )
    else:
        cabin = [(x - size * 0.2, y - size * 0.4), (x + size * 0.15, y - size * 0.4)]
        canvas.polygon([*cabin, (x + size * 0.2, y - size * 0.16), (x - size * 0.2, y - size * 0.16)], scale(hull, 0.8))
    if light.dark:
        canvas.glow((x, y - size * 0.5), size * 0.12, (200, 160, 90))


def _paint_gull(canvas: Canvas, light: Light, place: tuple[float, float], size: float) -> None:
    x, y = place
    colour = light.shade((70, 72, 78))
    for side in (-1, 1):
        canvas.line(
            [(x, y), (x + side * size * 0.6, y - size * 0.5), (x + side * size * 1.4, y - size * 0.2)],
            colour,
            size * 0.18,
        )


def paint_beach(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Waves that run out in foam on sand."""
    w, h = canvas.width, canvas.height
    rows, columns = canvas.grid()
    horizon = float(rng.uniform(0.22, 0.45))
    _paint_water(canvas, rng, light, horizon * h)
    slant = float(rng.uniform(-0.3, 0.3))
    start = float(rng.uniform(0.62, 0.8))
    wave = profile(rng, w, 3, 5)[None, :] * 0.03
    shore = start + slant * (columns - 0.5) + wave  # (1, W)
    away = np.broadcast_to(rows, (h, w)) - shore
    sand: Colour = (
        (236, 238, 240) if light.weather == "snow" else pick(rng, ((222, 198, 152), (206, 186, 150), (190, 168, 134)))
    )
    grain = np.array(vary(rng, sand, 6), np.float32) * (0.88 + 0.2 * canvas.noise(rng, 50, 30, 4, 0.8)[..., None])
    wet = 1 - 0.42 * (1 - smoothstep(away, 0.02, 0.1))[..., None]
    canvas.put(light.shade_array(grain * wet), smoothstep(away, -0.004, 0.012))
    lace = canvas.noise(rng, 30, 22, 4, 0.7)
    for offset in (0.0, *rng.uniform(0.05, 0.3, int(rng.integers(1, 4)))):
        width = 0.012 + 0.02 * float(rng.random())
        band = np.exp(-(((away + float(offset) * np.clip(rows * 1.2, 0.3, 1) + 0.02 * (lace - 0.5)) / width) ** 2))
        foam = np.broadcast_to(np.array(light.shade((246, 249, 250)), np.float32), (h, w, 3))
        canvas.put(foam, band * (0.5 + 0.5 * lace) * (rows > horizon + 0.03))
    return {"waves", "beach", "sand"}


def paint_storm(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Rank behind rank of breaking waves that nearly fill the frame."""
    w, h = canvas.width, canvas.height
    horizon = float(rng.uniform(0.12, 0.38))
    colour = _paint_water(canvas, rng, light, horizon * h)
    ranks = int(rng.integers(4, 8))
    rows, _ = canvas.grid()
    texture = canvas.noise(rng, 26, 8, 5, 0.7)
    for rank in range(ranks):
        share = (rank + 0.5) / ranks
        level = horizon + 0.02 + (0.95 - horizon) * share**1.3
        swell = profile(rng, w, 2 + 5 * (1 - share), 5, 0.36)
        crest = level - (1 - np.abs(swell) ** 1.5) * (0.012 + 0.06 * share)
        drop = np.clip(rows - crest[None, :], 0, 1)
        tone = 0.7 + 0.55 * np.exp(-drop * 14) + 0.8 * (texture - 0.5)
        face = np.array(scale(colour, 1.05), np.float32) * tone[..., None]
        foam = np.exp(-drop / (0.006 + 0.035 * share)) * smoothstep(texture + 0.3 * np.exp(-drop * 30), 0.42, 0.62)
        face += (np.array((240, 246, 248), np.float32) - face) * foam[..., None]
        canvas.put(light.shade_array(face, 0.5 * (1 - share)), as_mask(canvas.below((crest * h).astype(np.float32))))
    return {"waves"}


def paint_coast_from_above(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """A shore straight from above: deep water, shallows, surf, and a beach along one side."""
    rows, columns = canvas.grid()
    turn = float(rng.uniform(0, 2 * np.pi))
    along = (columns - 0.5) * np.cos(turn) + (rows - 0.5) * np.sin(turn) + (canvas.noise(rng, 3, 3, 5) - 0.5) * 0.22
    edge = float(rng.uniform(0.18, 0.34))
    ripples = canvas.noise(rng, 40, 40, 3, 0.7)[..., None]
    deep, shallow = np.array(vary(rng, (22, 84, 124), 8), np.float32), np.array((74, 176, 180), np.float32)
    pixels = deep + (shallow - deep) * smoothstep(along, edge - 0.45, edge)[..., None]
    pixels *= 0.82 + 0.36 * ripples
    sand = np.array(vary(rng, (222, 200, 156), 8), np.float32) * (0.9 + 0.2 * ripples)
    pixels += (sand - pixels) * smoothstep(along, edge, edge + 0.015)[..., None]
    for offset in (0.0, 0.05, float(rng.uniform(0.08, 0.2))):
        surf = np.exp(-(((along - edge + offset) / float(rng.uniform(0.008, 0.02))) ** 2)) * smoothstep(
            ripples[..., 0], 0.25, 0.6
        )
        pixels += (np.array((248, 250, 250), np.float32) - pixels) * surf[..., None]
    canvas.put(light.shade_array(pixels))
    return {"waves", "beach"}
