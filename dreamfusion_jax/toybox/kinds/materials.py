"""What the builders of all kinds share: colors of fixed details, axes, rods, chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dreamfusion_jax.toybox.shapes import Part, turn

Color = tuple[float, float, float]
Point = tuple[float, float, float]
Uniform = Callable[[float, float], float]  # low, high -> a random number between
# Chance, the main color, the accent's color -> the parts.
Builder = Callable[[Uniform, Color, Color], list[Part]]

DARK: Color = (0.12, 0.12, 0.14)
GLASS: Color = (0.62, 0.82, 0.95)
CREAM: Color = (0.95, 0.90, 0.78)
WOOD: Color = (0.45, 0.28, 0.14)
STEEL: Color = (0.55, 0.57, 0.60)
ORANGE: Color = (0.96, 0.55, 0.10)
LAMPLIGHT: Color = (1.0, 0.95, 0.6)
SNOW: Color = (0.97, 0.97, 0.97)

ALONG_X: np.ndarray = turn("y", 90.0)  # a cone's axis, upper end towards +x
ALONG_Y: np.ndarray = turn("x", -90.0)  # a cone's axis, upper end towards +y
UPSIDE_DOWN: np.ndarray = turn("x", 180.0)


def rod(
    start: Point, end: Point, radius: float, color: Color, end_radius: float | None = None
) -> Part:
    """Returns a round rod, or a cone, from one point to another."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(b - a))
    axis = (b - a) / length
    side = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    side /= np.linalg.norm(side)
    x, y, z = (0.5 * (a + b)).tolist()
    upper = radius if end_radius is None else end_radius
    rotation = np.stack([side, np.cross(axis, side), axis], axis=1)
    return Part("cone", (x, y, z), (radius, upper, 0.5 * length), color, 0.0, rotation)


def shade(color: Color, factor: float) -> Color:
    """Returns the color, lighter or darker."""
    red, green, blue = (float(min(1.0, factor * channel)) for channel in color)
    return red, green, blue
