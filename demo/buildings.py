"""Painters of Buildings."""

from __future__ import annotations

import numpy as np

from demo.canvas import Canvas, Colour, Light, pick, scale, vary
from demo.facades import WALLS, Facade, paint_facade
from demo.plants import paint_crown


def _tower(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    box: tuple[float, float, float, float],
    depth: float,
) -> None:
    left, top, right, bottom = box
    facade = Facade.choose(rng)
    cell = canvas.unit * rng.uniform(0.022, 0.034) * (1.5 - 0.8 * depth)
    columns, rows = (
        max(2, int((right - left) / cell)),
        max(3, int((bottom - top) / (cell * rng.uniform(1.0, 1.5)))),
    )
    kind = rng.random()
    width = right - left
    if kind < 0.3:
        inset, step = width * 0.2, (bottom - top) * 0.08
        canvas.polygon(
            [
                (left + inset, top - step),
                (right - inset, top - step),
                (right - inset, top),
                (left + inset, top),
            ],
            light.shade(scale(facade.wall, 0.85), depth),
        )
    elif kind < 0.45:
        peak = (left + width / 2, top - width * rng.uniform(0.5, 1.4))
        canvas.polygon([(left, top), peak, (right, top)], light.shade(scale(facade.wall, 0.75), depth))
    if kind > 0.75:
        middle = left + width * rng.uniform(0.3, 0.7)
        canvas.line(
            [(middle, top), (middle, top - width * rng.uniform(0.4, 1.0))],
            light.shade((90, 90, 95), depth),
            1.5,
        )
    side = width * float(rng.uniform(0.0, 0.3))
    quad = [(left, top), (right - side, top), (right - side, bottom), (left, bottom)]
    paint_facade(canvas, rng, light, quad, (rows, columns), facade, depth)
    if side > canvas.unit * 0.01:
        quad = [(right - side, top), (right, top + side * 0.2), (right, bottom), (right - side, bottom)]
        paint_facade(canvas, rng, light, quad, (rows, max(1, columns // 4)), facade, depth, 0.66)


def paint_skyline(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """Layers of towers, far to near, down to the bottom edge or to a strip of park or water."""
    w, h = canvas.width, canvas.height
    ground = h * float(rng.uniform(0.86, 1.05))
    tall = float(rng.uniform(0.5, 0.95))
    layers = int(rng.integers(2, 5))
    for layer in range(layers):
        depth = 1.1 * (1 - layer / max(1, layers - 1)) if layers > 1 else 0.2
        x = -w * float(rng.uniform(0, 0.1))
        while x < w:
            width = canvas.unit * float(rng.uniform(0.09, 0.24))
            height = h * tall * float(rng.uniform(0.35, 1.0)) * (1.05 - 0.22 * layer)
            _tower(canvas, rng, light, (x, ground - height, x + width, ground), depth)
            gap = rng.uniform(0.0, 0.12) if layer == 0 else rng.uniform(0.0, 0.22 + 0.12 * layer)
            x += width + canvas.unit * float(gap)
    if ground < h:
        green = rng.random() < 0.6
        colour: Colour = (74, 112, 52) if green else (178, 172, 160)
        canvas.polygon([(0, ground), (w, ground), (w, h), (0, h)], light.shade(vary(rng, colour, 10)))
        for x in rng.uniform(0, w, int(rng.integers(4, 16))) if green else ():
            paint_crown(
                canvas,
                rng,
                light,
                (float(x), ground),
                canvas.unit * float(rng.uniform(0.02, 0.045)),
                "summer",
            )
        return {"trees"} if green else set()
    return set()


def paint_front(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """One facade that fills the frame, seen a little from the side or from below."""
    w, h = canvas.width, canvas.height
    lean = rng.uniform(-0.25, 0.25, 4)
    top = h * float(rng.uniform(-0.3, 0.25))
    quad = [
        (w * (-0.05 + max(0.0, lean[2]) * 0.8), top + h * max(0.0, lean[0])),
        (w * (1.05 - max(0.0, lean[2]) * 0.8), top + h * max(0.0, -lean[0])),
        (w * 1.1, h * 1.05),
        (-w * 0.1, h * 1.05),
    ]
    rows, columns = int(rng.integers(4, 13)), int(rng.integers(4, 13))
    paint_facade(canvas, rng, light, quad, (rows, columns), Facade.choose(rng))
    return {"windows"}


def paint_corner(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """A block seen at its corner, both walls receding, before a lower skyline."""
    w, h = canvas.width, canvas.height
    x = -w * 0.1
    while x < w:
        width = canvas.unit * float(rng.uniform(0.1, 0.2))
        _tower(canvas, rng, light, (x, h * float(rng.uniform(0.4, 0.75)), x + width, h), 1.0)
        x += width + canvas.unit * float(rng.uniform(0, 0.1))
    edge, top = w * float(rng.uniform(0.3, 0.7)), h * float(rng.uniform(0.03, 0.25))
    reach = w * rng.uniform(0.2, 0.42, 2)
    drop = h * rng.uniform(0.06, 0.24, 2)
    lift = h * float(rng.uniform(0.0, 0.12))
    facade = Facade.choose(rng)
    rows = int(rng.integers(6, 18))
    bottom = h * 1.02
    left = [(edge - reach[0], top + drop[0]), (edge, top), (edge, bottom), (edge - reach[0], bottom - lift)]
    right = [(edge, top), (edge + reach[1], top + drop[1]), (edge + reach[1], bottom - lift), (edge, bottom)]
    shadows = (1.0, 0.65) if rng.random() < 0.5 else (0.65, 1.0)
    for quad, shadow in zip((left, right), shadows, strict=True):
        paint_facade(canvas, rng, light, quad, (rows, int(rng.integers(3, 9))), facade, 0.0, shadow)
    if lift > 0:
        pavement = [(0, bottom - lift), (w, bottom - lift), (w, h), (edge, bottom), (0, h)]
        canvas.polygon(
            [pavement[0], left[3], (edge, bottom), right[2], pavement[1], (w, h), (0, h)],
            light.shade((165, 160, 150)),
        )
    return {"windows"}


def paint_houses(canvas: Canvas, rng: np.random.Generator, light: Light) -> set[str]:
    """A terrace of gabled houses, square on, behind a lawn or a pavement."""
    w, h = canvas.width, canvas.height
    ground = h * float(rng.uniform(0.82, 0.97))
    count = int(rng.integers(2, 6))
    width = w / count * 1.02
    for index in range(-1, count + 1):
        left = index * width + width * 0.3
        top = ground - h * float(rng.uniform(0.4, 0.62))
        facade = Facade(vary(rng, pick(rng, WALLS), 12), vary(rng, (62, 84, 108), 12), 0.45, 0.55, 0.5)
        quad = [(left, top), (left + width, top), (left + width, ground), (left, ground)]
        paint_facade(canvas, rng, light, quad, (int(rng.integers(2, 5)), int(rng.integers(2, 4))), facade)
        peak = top - h * float(rng.uniform(0.1, 0.26))
        roof = vary(rng, (230, 235, 240) if light.weather == "snow" else (120, 60, 48), 15)
        eave = width * 0.04
        canvas.polygon([(left - eave, top), (left + width / 2, peak), (left + width + eave, top)], light.shade(roof))
        door, tall = left + width * float(rng.uniform(0.35, 0.55)), (ground - top) * 0.26
        canvas.polygon(
            [
                (door, ground - tall),
                (door + width * 0.14, ground - tall),
                (door + width * 0.14, ground),
                (door, ground),
            ],
            light.shade(vary(rng, (90, 60, 45), 20)),
        )
    colour: Colour = (232, 236, 240) if light.weather == "snow" else (86, 122, 60)
    canvas.polygon([(0, ground), (w, ground), (w, h), (0, h)], light.shade(colour))
    return {"houses", "windows"}
