"""Things that move: airplane, boat, car, rocket, truck."""

from __future__ import annotations

import numpy as np

from dreamfusion_jax.toybox.kinds.materials import (
    ALONG_X,
    ALONG_Y,
    DARK,
    GLASS,
    LAMPLIGHT,
    ORANGE,
    STEEL,
    UPSIDE_DOWN,
    WOOD,
    Builder,
    Color,
    Uniform,
    rod,
    shade,
)
from dreamfusion_jax.toybox.shapes import Part, turn

_TAIL_LIGHT: Color = (0.8, 0.1, 0.1)


def _wheel(x: float, y: float, z: float, radius: float, color: Color) -> list[Part]:
    return [
        Part("cone", (x, y, z), (radius - 0.02, radius - 0.02, 0.05), color, 0.02, ALONG_Y),
        Part("cone", (x, y, z), (radius * 0.5, radius * 0.5, 0.08), STEEL, 0.0, ALONG_Y),
    ]


def _airplane(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, girth, span = u(0.70, 0.78), u(0.13, 0.155), u(0.64, 0.74)
    chord, sweep = u(0.12, 0.15), u(14, 22)
    fin = u(0.17, 0.22)
    return [
        Part("ellipsoid", (0, 0, 0), (length, girth, girth), main),
        *[
            Part(
                "box",
                (-0.12, side * span / 2, -0.02),
                (chord, span / 2, 0.012),
                accent,
                0.015,
                turn("z", side * sweep),
            )
            for side in (1, -1)
        ],
        *[
            Part(
                "box",
                (-length + 0.08, side * 0.15, 0.04),
                (0.07, 0.15, 0.01),
                accent,
                0.012,
                turn("z", side * sweep),
            )
            for side in (1, -1)
        ],
        Part(
            "box",
            (-length + 0.08, 0, fin),
            (0.09, 0.012, fin - 0.03),
            accent,
            0.012,
            turn("y", -25),
        ),
        Part("ellipsoid", (length - 0.24, 0, 0.075), (0.13, 0.085, 0.07), GLASS),
        *[Part("box", (0.0, y, 0.035), (0.3, 0.008, 0.022), DARK) for y in (girth, -girth)],
        *[
            Part("cone", (0.03, y, -0.1), (0.065, 0.075, 0.11), STEEL, 0.0, ALONG_X)
            for y in (0.34, -0.34)
        ],
        *[
            Part("cone", (0.14, y, -0.1), (0.055, 0.055, 0.006), DARK, 0.0, ALONG_X)
            for y in (0.34, -0.34)
        ],
    ]


def _boat(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, deep, cabin = u(0.70, 0.78), u(0.25, 0.30), u(0.30, 0.36), u(0.11, 0.14)
    deck = -0.1
    floor = deck + 0.02
    return [
        Part("dome", (0, 0, deck), (length, width, deep), main, 0.0, UPSIDE_DOWN),
        Part("box", (-0.04, 0, deck + 0.005), (length * 0.7, width * 0.55, 0.012), WOOD),
        # A rail of the hull's color, higher at the bow, keeps the outline of a boat from above.
        Part("cone", (length - 0.08, 0, deck + 0.04), (0.1, 0.03, 0.06), main, 0.0),
        Part("box", (-0.15, 0, floor + cabin), (cabin + 0.12, width * 0.6, cabin), accent, 0.01),
        Part(
            "box",
            (-0.15, 0, floor + 2 * cabin),
            (cabin + 0.16, width * 0.7, 0.02),
            shade(main, 0.8),
        ),
        *[
            Part("box", (x, 0, floor + cabin * 1.2), (0.04, width * 0.6 + 0.02, cabin * 0.4), GLASS)
            for x in (-0.26, -0.13, 0.0)
        ],
        Part(
            "box", (cabin - 0.03, 0, floor + cabin * 1.2), (0.02, width * 0.42, cabin * 0.4), GLASS
        ),
        rod((-0.28, 0, floor + 2 * cabin), (-0.28, 0, floor + 2 * cabin + 0.24), 0.065, main),
        rod(
            (-0.28, 0, floor + 2 * cabin + 0.16), (-0.28, 0, floor + 2 * cabin + 0.25), 0.068, DARK
        ),
        rod((0.34, 0, deck), (0.34, 0, 0.62), 0.018, WOOD),
        Part("box", (0.22, 0, 0.54), (0.12, 0.012, 0.07), main),
    ]


def _car(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, roof = u(0.66, 0.74), u(0.28, 0.32), u(0.11, 0.14)
    wheel, axle = u(0.14, 0.16), length * 0.58
    cabin = -0.08
    return [
        Part("box", (0, 0, -0.1), (length - 0.05, width - 0.05, 0.075), main, 0.05),
        Part("box", (cabin, 0, 0.08), (0.27, width - 0.09, roof), main, 0.05),
        Part("box", (cabin, 0, 0.1), (0.11, width - 0.02, roof * 0.55), GLASS, 0.0),
        Part("box", (cabin + 0.2, 0, 0.1), (0.05, width - 0.02, roof * 0.55), GLASS, 0.0),
        Part("box", (cabin - 0.2, 0, 0.1), (0.05, width - 0.02, roof * 0.55), GLASS, 0.0),
        Part("box", (cabin, 0, 0.1), (0.34, width - 0.12, roof * 0.6), GLASS, 0.0),
        *[
            part
            for x in (axle, -axle)
            for y in (width, -width)
            for part in _wheel(x, y, -0.2, wheel, accent)
        ],
        *[
            Part("ellipsoid", (length - 0.01, y, -0.06), (0.03, 0.06, 0.05), LAMPLIGHT)
            for y in (0.18, -0.18)
        ],
        *[Part("box", (-length, y, -0.06), (0.015, 0.05, 0.035), _TAIL_LIGHT) for y in (0.2, -0.2)],
        *[
            Part("box", (x, 0, -0.17), (0.03, width - 0.03, 0.025), STEEL)
            for x in (length, -length)
        ],
    ]


def _rocket(u: Uniform, main: Color, accent: Color) -> list[Part]:
    girth, nose, body = u(0.17, 0.21), u(0.16, 0.20), u(0.36, 0.42)
    low = -0.44
    top = low + 2 * body

    def fin(angle: float) -> Part:
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        center = (float((girth + 0.07) * c), float((girth + 0.07) * s), low + 0.02)
        return Part(
            "box", center, (0.085, 0.02, 0.17), accent, 0.01, turn("z", angle) @ turn("y", -32)
        )

    return [
        Part("cone", (0, 0, low + body), (girth, girth, body), main, 0.01),
        Part("cone", (0, 0, top + nose), (girth, 0.012, nose), accent, 0.012),
        *[fin(angle) for angle in (0, 90, 180, 270)],
        Part("torus", (girth, 0, 0.1), (0.085, 0.025, 0), STEEL, 0.0, ALONG_X),
        Part("ellipsoid", (girth, 0, 0.1), (0.025, 0.08, 0.08), GLASS),
        Part("cone", (0, 0, low + 0.3), (girth + 0.015, girth + 0.015, 0.025), accent, 0.01),
        Part("cone", (0, 0, low - 0.06), (0.15, 0.1, 0.06), DARK),
        rod((0, 0, low - 0.34), (0, 0, low - 0.1), 0.004, ORANGE, 0.11),
    ]


def _truck(u: Uniform, main: Color, accent: Color) -> list[Part]:
    cargo, width, tall = u(0.40, 0.45), u(0.26, 0.30), u(0.27, 0.32)
    cab = 0.53
    return [
        Part("box", (0.16 - cargo, 0, -0.16 + tall), (cargo, width, tall), main, 0.01),
        Part(
            "box",
            (0.16 - cargo, 0, -0.16 + tall),
            (cargo + 0.012, width * 0.8, tall * 0.8),
            shade(main, 0.9),
        ),
        Part("box", (cab, 0, -0.02), (0.19, width - 0.04, 0.2), accent, 0.03),
        Part("box", (cab + 0.14, 0, 0.07), (0.09, width - 0.06, 0.08), GLASS, 0.0),
        Part("box", (cab + 0.04, 0, 0.07), (0.09, width + 0.005, 0.08), GLASS, 0.0),
        Part("box", (0.02, 0, -0.22), (0.68, width - 0.06, 0.05), DARK),
        *[
            part
            for x in (0.5, -0.2, -0.5)
            for y in (width - 0.03, 0.03 - width)
            for part in _wheel(x, y, -0.3, 0.14, DARK)
        ],
        *[
            Part("box", (cab + 0.22, y, -0.13), (0.012, 0.05, 0.035), LAMPLIGHT)
            for y in (0.17, -0.17)
        ],
        Part("box", (cab + 0.22, 0, -0.2), (0.025, width - 0.03, 0.03), STEEL),
    ]


BUILDERS: dict[str, Builder] = {
    "airplane": _airplane,
    "boat": _boat,
    "car": _car,
    "rocket": _rocket,
    "truck": _truck,
}
