"""Things to live in or look at from afar: castle, house, windmill."""

from __future__ import annotations

import numpy as np

from dreamfusion_jax.toybox.kinds.materials import (
    ALONG_X,
    CREAM,
    DARK,
    GLASS,
    STEEL,
    WOOD,
    Builder,
    Color,
    Uniform,
    rod,
    shade,
)
from dreamfusion_jax.toybox.shapes import Part, turn

_BRICK: Color = (0.5, 0.3, 0.25)


def _castle(u: Uniform, main: Color, accent: Color) -> list[Part]:
    side, tower, roof, keep = u(0.36, 0.42), u(0.27, 0.33), u(0.13, 0.17), u(0.22, 0.30)
    ground = -0.48
    corners = [(x, y) for x in (side, -side) for y in (side, -side)]
    top = ground + 2 * tower
    return [
        Part("box", (0, 0, ground + 0.2), (side, side, 0.2), main),
        *[Part("cone", (x, y, ground + tower), (0.13, 0.12, tower), main) for x, y in corners],
        *[Part("cone", (x, y, top), (0.15, 0.15, 0.03), shade(main, 0.8)) for x, y in corners],
        *[Part("cone", (x, y, top + 0.03 + roof), (0.17, 0.01, roof), accent) for x, y in corners],
        # Battlements: ridges along the walls' tops, each cut where the next one is missing.
        *[
            Part("box", (0, y, ground + 0.43), (side + 0.02, 0.035, 0.05), main)
            for y in (-0.16, 0.0, 0.16)
        ],
        *[
            Part("box", (x, 0, ground + 0.43), (0.035, side + 0.02, 0.05), main)
            for x in (-0.16, 0.16)
        ],
        Part("box", (0, 0, keep - 0.1), (0.16, 0.16, keep), main),
        Part("box", (0, 0, 2 * keep - 0.09), (0.19, 0.19, 0.035), shade(main, 0.8)),
        Part("box", (0.15, 0, 2 * keep - 0.26), (0.02, 0.04, 0.07), DARK),
        Part("box", (side, 0, ground + 0.13), (0.02, 0.1, 0.13), WOOD),
        Part("cone", (side, 0, ground + 0.26), (0.1, 0.1, 0.02), WOOD, 0.0, ALONG_X),
    ]


def _house(u: Uniform, main: Color, accent: Color) -> list[Part]:
    depth, width, wall, gable = u(0.42, 0.50), u(0.40, 0.46), u(0.24, 0.29), u(0.32, 0.40)
    ground = -0.52
    eaves = ground + 2 * wall
    slant = float(np.hypot(width, gable))
    pitch = float(np.rad2deg(np.arctan2(gable, width)))
    window = ground + wall * 1.15

    def slope(side: int) -> Part:
        """Makes a slope from the ridge down along the gable and on, as eaves."""
        half = 0.5 * slant + 0.06
        y = (width * (half - 0.02) + gable * 0.025) / slant
        z = eaves + gable - (gable * (half - 0.02) - width * 0.025) / slant
        center = (0.0, side * y, z)
        return Part(
            "box", center, (depth + 0.08, half, 0.025), accent, 0.0, turn("x", -side * pitch)
        )

    return [
        Part("box", (0, 0, ground + wall), (depth, width, wall), main),
        Part("prism", (0, 0, eaves), (depth, width, gable), main),
        slope(1),
        slope(-1),
        Part("box", (depth, 0, ground + wall * 0.72), (0.02, 0.12, wall * 0.72), CREAM),
        Part("box", (depth, 0, ground + wall * 0.68), (0.035, 0.095, wall * 0.68), WOOD),
        Part("ellipsoid", (depth + 0.04, 0.06, ground + wall * 0.65), (0.02, 0.02, 0.02), STEEL),
        Part("box", (depth + 0.1, 0, ground + 0.025), (0.1, 0.17, 0.025), STEEL),
        *[Part("box", (depth, y, window), (0.02, 0.11, 0.12), CREAM) for y in (0.27, -0.27)],
        *[Part("box", (depth, y, window), (0.03, 0.08, 0.09), GLASS) for y in (0.27, -0.27)],
        *[Part("box", (0, y, window), (0.14, 0.02, 0.12), CREAM) for y in (width, -width)],
        *[Part("box", (0, y, window), (0.11, 0.03, 0.09), GLASS) for y in (width, -width)],
        Part("cone", (depth, 0, eaves + 0.12), (0.075, 0.075, 0.03), GLASS, 0.0, ALONG_X),
        Part("box", (-0.22, 0.2, eaves + gable * 0.85), (0.07, 0.07, 0.2), _BRICK),
    ]


def _windmill(u: Uniform, main: Color, accent: Color) -> list[Part]:
    base, spin, reach, broad = u(0.28, 0.33), u(0, 90), u(0.48, 0.56), u(0.085, 0.11)
    hub, front = 0.24, 0.3

    def across(angle: float, along: float, aside: float) -> tuple[float, float, float]:
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        return front, float(-along * s + aside * c), float(hub + along * c + aside * s)

    def sail(angle: float) -> list[Part]:
        middle, half = 0.5 * (reach + 0.14), 0.5 * (reach - 0.14)
        center = across(angle, middle, 0.6 * broad)
        blade = Part("box", center, (0.014, broad, half), accent, 0.0, turn("x", angle))
        return [blade, rod(across(angle, 0.0, 0.0), across(angle, reach, 0.0), 0.024, WOOD)]

    return [
        rod((0, 0, -0.66), (0, 0, 0.2), base, main, 0.17),
        Part("cone", (0, 0, -0.2), (0.31, 0.29, 0.025), WOOD),
        Part("dome", (0, 0, 0.2), (0.2, 0.2, 0.22), shade(_BRICK, 0.9)),
        Part("cone", (0.22, 0, hub), (0.05, 0.05, 0.11), DARK, 0.0, ALONG_X),
        Part("ellipsoid", (front + 0.02, 0, hub), (0.05, 0.06, 0.06), DARK),
        *[part for quarter in (0, 90, 180, 270) for part in sail(spin + quarter)],
        Part("box", (base - 0.03, 0, -0.5), (0.06, 0.09, 0.15), WOOD),
        Part("box", (0.21, 0, -0.02), (0.05, 0.05, 0.06), GLASS),
        Part("box", (-0.21, 0, -0.02), (0.05, 0.05, 0.06), GLASS),
    ]


BUILDERS: dict[str, Builder] = {
    "castle": _castle,
    "house": _house,
    "windmill": _windmill,
}
