"""Walls with windows: what buildings and streets are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.canvas import Canvas, Colour, Light, Point, apply, homography, mix, pick, scale, vary

WALLS: tuple[Colour, ...] = (
    (176, 92, 70),
    (205, 186, 150),
    (160, 160, 165),
    (120, 128, 140),
    (222, 214, 200),
    (196, 160, 110),
    (140, 100, 80),
    (110, 130, 150),
    (230, 200, 160),
    (150, 175, 190),
)
_LAMPLIGHT: tuple[Colour, ...] = ((255, 214, 130), (255, 235, 180), (240, 190, 100), (210, 225, 255))


@dataclass(frozen=True)
class Facade:
    """How a wall is cut into windows: shares of a cell, and what the glass looks like."""

    wall: Colour
    glass: Colour
    across: float
    up: float
    lit: float

    @staticmethod
    def choose(rng: np.random.Generator) -> Facade:
        """A facade style: punched windows, ribbons, or a glass curtain."""
        style = rng.random()
        wall = vary(rng, pick(rng, WALLS), 12)
        glass = vary(rng, (62, 84, 108), 16)
        if style < 0.6:
            across, up = rng.uniform(0.38, 0.62), rng.uniform(0.45, 0.68)
        elif style < 0.8:
            across, up = rng.uniform(0.9, 0.98), rng.uniform(0.4, 0.6)
        else:
            across, up = rng.uniform(0.82, 0.92), rng.uniform(0.78, 0.9)
            wall, glass = scale(wall, 0.8), vary(rng, (95, 135, 165), 20)
        return Facade(wall, glass, float(across), float(up), float(rng.uniform(0.25, 0.65)))


def paint_facade(
    canvas: Canvas,
    rng: np.random.Generator,
    light: Light,
    quad: Sequence[Point],
    cells: tuple[int, int],
    facade: Facade,
    depth: float = 0.0,
    shadow: float = 1.0,
) -> None:
    """A wall with `cells` = (rows, columns) of windows, in perspective, from a quad clockwise from the top left."""
    wall = light.shade(scale(facade.wall, shadow), depth)
    canvas.polygon(quad, wall)
    rows, columns = cells
    matrix = homography(quad)
    left, top = (1 - facade.across) / 2, (1 - facade.up) / 2
    corners = np.array([(left, top), (1 - left, top), (1 - left, 1 - top), (left, 1 - top)])
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    origin = np.stack([column, row], -1)[:, :, None, :]
    points = apply(matrix, (origin + corners) / (columns, rows)).reshape(-1, 4, 2)
    if np.ptp(points[0, :, 0]) < 0.8 or np.ptp(points[:, :, 1], axis=1).max() < 0.8:
        return
    glass = light.shade(scale(facade.glass, shadow), depth)
    sky = mix(glass, light.sky_low, 0.35)
    chances = rng.random((len(points), 2))
    share = facade.lit if light.dark else 0.3 * facade.lit if light.time == "sunset" else 0.0
    rough = float(np.ptp(points[:, :, 1], axis=1).mean()) > canvas.unit * 0.035
    for window, (chance, tone) in zip(points, chances, strict=True):
        lit = chance < share
        colour = pick(rng, _LAMPLIGHT) if lit else mix(glass, sky, tone)
        if rough:
            canvas.polygon(_grow(window, 1.14), scale(wall, 1.18 if tone < 0.5 else 1.1))
        canvas.polygon(window, mix(colour, light.haze, 0.25 * depth) if lit else colour)
        if rough:
            middle = (window[0] + window[1]) / 2, (window[3] + window[2]) / 2
            canvas.line([tuple(p) for p in middle], scale(wall, 0.8), canvas.unit * 0.004)


def _grow(window: np.ndarray, factor: float) -> np.ndarray:
    centre = window.mean(0)
    return centre + (window - centre) * factor
