"""Things to live in or look at from afar: castle, house, windmill."""

from __future__ import annotations

import numpy as np

from dreamfusion_jax.toybox.kinds.materials import (
    ALONG_X,
    DARK,
    GLASS,
    STEEL,
    WOOD,
    Builder,
    Color,
    Uniform,
)
from dreamfusion_jax.toybox.shapes import Part, turn


def _castle(u: Uniform, main: Color, accent: Color) -> list[Part]:
    side, tower, roof = u(0.38, 0.44), u(0.28, 0.36), u(0.13, 0.18)
    corners = [(x, y) for x in (side, -side) for y in (side, -side)]
    return [
        Part("box", (0, 0, -0.25), (side, side, 0.22), main),
        *[Part("cone", (x, y, -0.47 + tower), (0.13, 0.13, tower), main) for x, y in corners],
        *[
            Part("cone", (x, y, -0.47 + 2 * tower + roof), (0.17, 0.01, roof), accent)
            for x, y in corners
        ],
        Part("box", (0, 0, 0.0), (0.17, 0.17, u(0.25, 0.32)), main),
        Part("box", (side, 0, -0.34), (0.02, 0.1, 0.13), DARK),
    ]


def _house(u: Uniform, main: Color, accent: Color) -> list[Part]:
    depth, width, wall = u(0.40, 0.46), u(0.40, 0.48), u(0.24, 0.30)
    side = (width + 0.06) / np.sqrt(2)
    roof = turn("x", 45)
    return [
        Part("box", (0, 0, -0.25), (depth, width, wall), main),
        # The roof is a square bar on its edge: its lower half lies within the walls.
        Part("box", (0, 0, wall - 0.26), (depth + 0.06, side, side), accent, 0.0, roof),
        Part("box", (0, 0, -0.2), (depth + 0.061, width, wall + 0.04), main),
        Part("box", (depth + 0.06, 0, wall * 0.6 - 0.5), (0.03, 0.12, wall * 0.6), DARK),
        Part("box", (depth + 0.06, 0.29, -0.22), (0.03, 0.1, 0.1), GLASS),
        Part("box", (depth + 0.06, -0.29, -0.22), (0.03, 0.1, 0.1), GLASS),
        Part("box", (depth + 0.12, 0, wall * 1.3 - 0.5), (0.12, 0.2, 0.03), accent, 0.01),
        Part("box", (depth + 0.14, 0, -0.49), (0.12, 0.18, 0.04), STEEL),
        Part("box", (-0.2, 0.22, wall + 0.05), (0.07, 0.07, 0.22), (0.5, 0.3, 0.25)),
    ]


def _windmill(u: Uniform, main: Color, accent: Color) -> list[Part]:
    base, spin, blade = u(0.26, 0.31), u(0, 90), u(0.27, 0.31)
    hub = 0.3

    def sail(angle: float) -> Part:
        radians = np.deg2rad(angle)
        center = (0.27, -0.32 * np.sin(radians), hub + 0.32 * np.cos(radians))
        return Part("box", center, (0.012, 0.065, blade), accent, 0.01, turn("x", angle))

    return [
        Part("cone", (0, 0, -0.2), (base, 0.17, 0.45), main),
        Part("cone", (0, 0, 0.36), (0.2, 0.02, 0.11), (0.45, 0.25, 0.2)),
        Part("cone", (0.2, 0, hub), (0.05, 0.05, 0.09), DARK, 0, ALONG_X),
        *[sail(spin + quarter) for quarter in (0, 90, 180, 270)],
        Part("box", (base * 0.85, 0, -0.48), (0.08, 0.11, 0.17), WOOD),
    ]


BUILDERS: dict[str, Builder] = {
    "castle": _castle,
    "house": _house,
    "windmill": _windmill,
}
