"""Things that move: airplane, boat, car, rocket, truck."""

from __future__ import annotations

from dreamfusion_jax.toybox.kinds.materials import (
    ALONG_X,
    ALONG_Y,
    DARK,
    GLASS,
    STEEL,
    Builder,
    Color,
    Uniform,
)
from dreamfusion_jax.toybox.shapes import Part, turn


def _airplane(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, girth, span = u(0.60, 0.68), u(0.14, 0.17), u(0.56, 0.66)
    return [
        Part("ellipsoid", (0, 0, 0), (length, girth, girth), main),
        Part("box", (0.08, 0, 0), (u(0.14, 0.18), span, 0.02), accent, 0.02),
        Part("box", (-0.54, 0, 0.05), (0.1, u(0.26, 0.32), 0.02), accent, 0.015),
        Part("box", (-0.54, 0, 0.24), (0.12, 0.02, u(0.20, 0.25)), accent, 0.015, turn("y", -20)),
        Part("ellipsoid", (0.36, 0, 0.1), (0.18, 0.11, 0.1), GLASS),
        Part("cone", (0.2, 0.32, -0.07), (0.06, 0.08, 0.15), STEEL, 0.0, ALONG_X),
        Part("cone", (0.2, -0.32, -0.07), (0.06, 0.08, 0.15), STEEL, 0.0, ALONG_X),
        Part("ellipsoid", (length - 0.03, 0, 0), (0.09, 0.09, 0.09), DARK),
    ]


def _boat(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, cabin = u(0.44, 0.50), u(0.21, 0.27), u(0.12, 0.17)
    bow = turn("z", 45)
    return [
        Part("box", (-0.12, 0, -0.2), (length, width, 0.11), main, 0.02),
        Part("box", (length - 0.12, 0, -0.2), (width * 0.7, width * 0.7, 0.11), main, 0.02, bow),
        Part("box", (-0.22, 0, 0.03), (cabin + 0.05, width * 0.65, cabin), accent, 0.01),
        Part("box", (-0.22, 0, 0.08), (cabin - 0.03, width * 0.65 + 0.015, 0.05), DARK, 0.005),
        Part("cone", (-0.34, 0, 0.32), (0.06, 0.06, u(0.14, 0.2)), main),
    ]


def _car(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, roof = u(0.60, 0.68), u(0.27, 0.31), u(0.10, 0.13)
    wheel, axle = u(0.13, 0.15), length * 0.6
    wheels = [
        Part("cone", (x, y, -0.2), (wheel, wheel, 0.045), accent, 0.015, ALONG_Y)
        for x in (axle, -axle)
        for y in (width, -width)
    ]
    return [
        Part("box", (0, 0, -0.08), (length - 0.04, width - 0.04, 0.07), main, 0.04),
        Part("box", (-0.1, 0, 0.1), (0.27, width - 0.06, roof), main, 0.05),
        Part("box", (-0.1, 0, 0.12), (0.22, width + 0.005, roof * 0.6), GLASS, 0.0),
        Part("box", (-0.1, 0, 0.12), (0.33, width - 0.07, roof * 0.6), GLASS, 0.0),
        *wheels,
        Part("box", (length, 0.17, -0.05), (0.015, 0.06, 0.04), (1.0, 0.95, 0.6), 0.01),
        Part("box", (length, -0.17, -0.05), (0.015, 0.06, 0.04), (1.0, 0.95, 0.6), 0.01),
    ]


def _rocket(u: Uniform, main: Color, accent: Color) -> list[Part]:
    girth, nose = u(0.17, 0.21), u(0.15, 0.19)
    fins = [
        Part("box", (x, y, -0.45), (0.04 + abs(x) * 0.5, 0.04 + abs(y) * 0.5, 0.15), accent, 0.01)
        for x, y in ((girth + 0.08, 0), (-girth - 0.08, 0), (0, girth + 0.08), (0, -girth - 0.08))
    ]
    return [
        Part("cone", (0, 0, -0.1), (girth, girth, 0.42), main, 0.01),
        Part("cone", (0, 0, 0.32 + nose), (girth, 0.02, nose), accent, 0.01),
        *fins,
        Part("ellipsoid", (girth, 0, 0.12), (0.03, 0.09, 0.09), GLASS),
        Part("cone", (0, 0, -0.57), (0.15, 0.1, 0.05), DARK),
    ]


def _truck(u: Uniform, main: Color, accent: Color) -> list[Part]:
    cargo, width, tall = u(0.36, 0.41), u(0.24, 0.28), u(0.28, 0.34)
    wheels = [
        Part("cone", (x, y, -0.32), (0.14, 0.14, 0.06), DARK, 0.01, ALONG_Y)
        for x in (0.42, -0.45)
        for y in (width - 0.02, 0.02 - width)
    ]
    return [
        Part("box", (cargo * -1 + 0.12, 0, -0.22 + tall), (cargo, width, tall), main, 0.01),
        Part("box", (0.44, 0, -0.07), (0.18, width - 0.02, 0.18), accent, 0.02),
        Part("box", (0.56, 0, 0.01), (0.085, width - 0.05, 0.08), GLASS, 0.0),
        Part("box", (0.46, 0, 0.01), (0.1, width + 0.01, 0.08), GLASS, 0.0),
        Part("box", (0, 0, -0.25), (0.6, width - 0.05, 0.05), DARK),
        *wheels,
        Part("box", (0.64, 0, -0.2), (0.01, 0.2, 0.04), (1.0, 0.95, 0.6)),
    ]


BUILDERS: dict[str, Builder] = {
    "airplane": _airplane,
    "boat": _boat,
    "car": _car,
    "rocket": _rocket,
    "truck": _truck,
}
