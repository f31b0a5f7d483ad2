"""What the builders of all kinds share: colors of fixed details, axes, the source of chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dreamfusion_jax.toybox.shapes import Part, turn

Color = tuple[float, float, float]
Uniform = Callable[[float, float], float]  # low, high -> a random number between
# Chance, the main color, the accent's color -> the parts.
Builder = Callable[[Uniform, Color, Color], list[Part]]

DARK: Color = (0.12, 0.12, 0.14)
GLASS: Color = (0.70, 0.86, 0.95)
CREAM: Color = (0.95, 0.90, 0.78)
WOOD: Color = (0.45, 0.28, 0.14)
STEEL: Color = (0.55, 0.57, 0.60)
ORANGE: Color = (0.96, 0.55, 0.10)

ALONG_X: np.ndarray = turn("y", 90.0)  # a cone's axis, upper end towards +x
ALONG_Y: np.ndarray = turn("x", -90.0)  # a cone's axis, upper end towards +y
