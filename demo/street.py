"""The painter of Street."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.canvas import Canvas, Colour, Light, Point, ground_texture, noise, pick, scale, vary
from demo.facades import Facade, paint_facade
from demo.plants import paint_crown

_CARS: tuple[Colour, ...] = (
    (190, 30, 30),
    (30, 60, 140),
    (225, 225, 228),
    (40, 42, 46),
    (150, 155, 160),
    (225, 180, 40),
    (40, 110, 70),
)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in a street: metres to pixels. X to the right, Y up from the ground, Z ahead."""

    vanish: Point
    focal: float
    height: float

    def see(self, x: float, y: float, z: float) -> Point:
        """The pixel of a point in the world."""
        return self.vanish[0] + self.focal * x / z, self.vanish[1] + self.focal * (self.height - y) / z


def paint_street(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """A road to the vanishing point between pavements and houses, with markings, lamps, trees and cars."""
    w, h = canvas.width, canvas.height
    horizon = h * float(rng.uniform(0.3, 0.55))
    camera = Camera(
        (w * float(rng.uniform(0.3, 0.7)), horizon),
        canvas.unit * float(rng.uniform(0.6, 1.0)),
        float(rng.uniform(1.7, 4.5)),
    )
    near, far = camera.focal * camera.height / (h - horizon) * 0.93, 160.0
    road = float(rng.uniform(3.4, 6.5))
    wall = road + float(rng.uniform(2.0, 4.5))
    side: Colour = (232, 236, 240) if light.weather == "snow" else (160, 155, 146)
    canvas.polygon([(0, horizon), (w, horizon), (w, h), (0, h)], light.shade(vary(rng, side, 8), 0.1))
    _paint_road(canvas, rng, light, camera, road, (near, far))
    for sign in (-1, 1):
        _paint_row_of_houses(canvas, rng, light, camera, sign * wall, (near, 90.0))
    return {"road"} | _paint_traffic(canvas, rng, light, camera, (road, wall), near)


def _paint_road(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    camera: Camera,
    road: float,
    reach: tuple[float, float],
) -> None:
    near, far = reach

    def strip(left: float, right: float, start: float, end: float) -> list[Point]:
        return [
            camera.see(left, 0, end),
            camera.see(right, 0, end),
            camera.see(right, 0, start),
            camera.see(left, 0, start),
        ]

    tone = float(rng.uniform(70, 105))
    tile = noise(rng, 256, 256, (24, 24), 4, 0.8)
    texture, depth = ground_texture(canvas, tile, camera.vanish[1], across=0.4, along=0.4)
    grain = tone + (texture - 0.5) * 34 / np.sqrt(depth)
    pixels = np.repeat(grain[..., None], 3, axis=2).astype(np.float32)
    mask = canvas.mask(strip(-road, road, near, far))
    canvas.put(light.shade_array(pixels, np.minimum(depth / 40, 1).astype(np.float32)), mask)
    kerb = light.shade((205, 202, 195))
    for x in (-road - 0.25, road):
        canvas.polygon(strip(x, x + 0.25, near, far), kerb)
    paint = light.shade((236, 200, 70) if rng.random() < 0.25 else (240, 240, 236))
    lanes = (0.0,) if rng.random() < 0.7 else (-road / 3, road / 3)
    dash, gap = float(rng.uniform(2, 4)), float(rng.uniform(3, 6))
    for lane in lanes:
        start = near - float(rng.uniform(0, 2))
        while start < 90:
            if start > near * 0.8:
                canvas.polygon(strip(lane - 0.1, lane + 0.1, start, start + dash), paint)
            start += dash + gap
    if rng.random() < 0.4:
        start = near * float(rng.uniform(1.1, 2.0))
        for x in np.arange(-road + 0.4, road - 0.6, 1.1):
            canvas.polygon(strip(float(x), float(x) + 0.6, start, start + 3.0), light.shade((235, 235, 232)))


def _paint_row_of_houses(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    camera: Camera,
    x: float,
    reach: tuple[float, float],
) -> None:
    near, far = reach
    low, spread = float(rng.uniform(6, 12)), float(rng.uniform(2, 16))
    blocks: list[tuple[float, float]] = []
    start = near * 0.6
    while start < far:
        end = start + float(rng.uniform(7, 20))
        blocks.append((max(start, near * 0.6), end))
        start = end + (float(rng.uniform(2, 8)) if rng.random() < 0.15 else 0.0)
    for start, end in reversed(blocks):
        tall = low + float(rng.random()) * spread
        quad = [
            camera.see(x, tall, start),
            camera.see(x, tall, end),
            camera.see(x, 0, end),
            camera.see(x, 0, start),
        ]
        facade = Facade.choose(rng)
        cells = max(2, int(tall / 3.2)), max(2, int((end - start) / rng.uniform(2.2, 4)))
        depth = min(1.3, start / 70)
        if abs(quad[0][0] - quad[1][0]) > 1:
            paint_facade(canvas, rng, light, quad, cells, facade, depth, 0.75 if x > 0 else 0.95)
            inside = camera.see(x * 1.6, tall, start), camera.see(x * 1.6, 0, start)
            canvas.polygon([quad[0], inside[0], inside[1], quad[3]], light.shade(scale(facade.wall, 0.6), depth))


def _paint_traffic(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    camera: Camera,
    widths: tuple[float, float],
    near: float,
) -> set[str]:
    road, wall = widths
    items: list[tuple[float, str, float]] = []
    for z in rng.uniform(near * 1.5, 60, int(rng.integers(1, 7))):
        items.append((float(z), "cars", float(rng.choice([-1, 1])) * road * 0.5))
    if rng.random() < 0.6:
        parked = float(rng.choice([-1, 1])) * (road - 1.1)
        items += [(float(z), "cars", parked) for z in np.arange(near * 1.3, 50, rng.uniform(5.5, 9))]
    if rng.random() < 0.75:
        items += [(float(z), "lamps", s * (road + 0.7)) for z in np.arange(near * 1.4, 80, 14) for s in (-1, 1)]
    if rng.random() < 0.35:
        items += [(float(z), "trees", s * (road + 1.3)) for z in np.arange(near * 1.6, 70, 9) for s in (-1, 1)]
    if rng.random() < 0.5:
        for z in rng.uniform(near * 1.3, 25, int(rng.integers(2, 9))):
            items.append((float(z), "people", float(rng.choice([-1, 1])) * float(rng.uniform(road + 0.5, wall - 0.4))))
    for z, kind, x in sorted(items, reverse=True):
        _STREET_THINGS[kind](canvas, rng, light, camera, x, z)
    return {kind for _, kind, _ in items}


def _paint_car(canvas: Canvas, rng: np.random.Generator, light: Light, camera: Camera, x: float, z: float) -> None:
    depth = min(1.3, z / 70)
    body = vary(rng, pick(rng, _CARS), 8)

    def box(left: float, right: float, low: float, high: float, colour: Colour, away: float = 0.0) -> None:
        corners = ((left, high), (right, high), (right, low), (left, low))
        canvas.polygon([camera.see(x + a, b, z + away) for a, b in corners], colour)

    shadow = [camera.see(x + a, 0, z + b) for a, b in ((-1, -0.1), (1, -0.1), (1, 4), (-1, 4))]
    canvas.polygon(shadow, light.shade((30, 30, 32), depth))
    inner = -0.9 if x > 0 else 0.9
    flank = [camera.see(x + inner, b, z + c) for b, c in ((0.9, 0), (0.9, 3.8), (0.3, 3.8), (0.3, 0))]
    canvas.polygon(flank, light.shade(scale(body, 0.7), depth))
    box(-0.72, 0.72, 0.85, 1.45, light.shade(scale(body, 0.85), depth), 0.8)
    box(-0.62, 0.62, 0.9, 1.36, light.shade((48, 62, 76), depth), 0.7)
    for left in (-0.85, 0.55):
        box(left, left + 0.3, 0.0, 0.4, light.shade((18, 18, 20), depth))
    box(-0.9, 0.9, 0.28, 0.9, light.shade(body, depth))
    towards = x < 0
    lamp: Colour = (255, 244, 200) if towards else (220, 30, 25)
    for left in (-0.82, 0.5):
        bright = light.dark or light.weather in ("fog", "rain")
        box(left, left + 0.32, 0.6, 0.78, lamp if bright else light.shade(lamp, depth))
        if bright:
            radius = min(canvas.unit * 0.02, camera.focal * 0.3 / z)
            canvas.glow(camera.see(x + left + 0.16, 0.7, z), radius, scale(lamp, 0.6))


def _paint_lamp(canvas: Canvas, _rng: np.random.Generator, light: Light, camera: Camera, x: float, z: float) -> None:
    depth = min(1.3, z / 70)
    arm = -0.9 if x > 0 else 0.9
    top = camera.see(x, 5.5, z)
    canvas.line(
        [camera.see(x, 0, z), top, camera.see(x + arm, 5.7, z)],
        light.shade((70, 74, 78), depth),
        camera.focal * 0.13 / z,
    )
    head = camera.see(x + arm, 5.6, z)
    size = camera.focal * 0.2 / z
    canvas.ellipse(head, (size * 1.5, size), (255, 226, 160) if light.dark else light.shade((215, 215, 205), depth))
    if light.dark:
        canvas.glow(head, min(canvas.unit * 0.03, size * 4), (190, 145, 70))


def _paint_tree(canvas: Canvas, rng: np.random.Generator, light: Light, camera: Camera, x: float, z: float) -> None:
    season = "winter" if light.weather == "snow" else "summer"
    canvas.line([camera.see(x, 0, z), camera.see(x, 2.4, z)], light.shade((80, 60, 45)), camera.focal * 0.25 / z)
    paint_crown(canvas, rng, light, camera.see(x, 2.6, z), camera.focal * 1.4 / z, season, min(1.3, z / 70))


def _paint_person(canvas: Canvas, rng: np.random.Generator, light: Light, camera: Camera, x: float, z: float) -> None:
    depth = min(1.3, z / 70)
    metre = camera.focal / z
    foot, coat = camera.see(x, 0, z), vary(rng, pick(rng, _CARS), 10)
    legs = [
        (foot[0] - 0.16 * metre, foot[1]),
        (foot[0] + 0.16 * metre, foot[1]),
        (foot[0], foot[1] - 0.9 * metre),
    ]
    canvas.polygon(legs, light.shade((40, 44, 60), depth))
    canvas.ellipse((foot[0], foot[1] - 1.1 * metre), (0.22 * metre, 0.38 * metre), light.shade(coat, depth))
    canvas.ellipse((foot[0], foot[1] - 1.62 * metre), (0.12 * metre, 0.15 * metre), light.shade((205, 165, 140), depth))


_STREET_THINGS = {"cars": _paint_car, "lamps": _paint_lamp, "trees": _paint_tree, "people": _paint_person}
