"""The kinds of the toybox: what makes a chair a chair, with randomised proportions.

Each builder returns the parts of one random object in a box of about [-0.75, 0.75]^3, z up, its
front towards +x, its left towards +y. `main` is the colour that the caption names, `accent` that of
the part listed in captions.ACCENT_PARTS. A kind's sequence of primitives never varies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dreamfusion_jax.toybox.captions import COLORS, GREY, Subject
from dreamfusion_jax.toybox.shapes import Part, turn

Color = tuple[float, float, float]
_DARK: Color = (0.12, 0.12, 0.14)
_GLASS: Color = (0.70, 0.86, 0.95)
_CREAM: Color = (0.95, 0.90, 0.78)
_WOOD: Color = (0.45, 0.28, 0.14)
_STEEL: Color = (0.55, 0.57, 0.60)
_ORANGE: Color = (0.96, 0.55, 0.10)
_GREEN: Color = (0.20, 0.55, 0.22)

# The accent's colour where the caption names none; None is the main colour.
_DEFAULT_ACCENT: dict[str, Color | None] = {
    "airplane": None,
    "bed": _CREAM,
    "boat": _CREAM,
    "bottle": _WOOD,
    "cactus": (0.72, 0.40, 0.25),
    "candle": _STEEL,
    "car": _DARK,
    "castle": _STEEL,
    "chair": None,
    "duck": _ORANGE,
    "fish": None,
    "house": (0.50, 0.25, 0.18),
    "lamp": _STEEL,
    "mug": None,
    "mushroom": _CREAM,
    "rabbit": None,
    "robot": _STEEL,
    "rocket": _STEEL,
    "snowman": _DARK,
    "sofa": None,
    "table": None,
    "teapot": None,
    "tree": _WOOD,
    "truck": None,
    "umbrella": _WOOD,
    "windmill": _CREAM,
}


def build(rng: np.random.Generator, subject: Subject) -> list[Part]:
    """The parts of one random object, slightly scaled at random about the origin.

    A subject without a colour is grey all over, details included: a textureless render.
    """
    main = COLORS[subject.color] if subject.color else GREY
    accent = COLORS[subject.accent] if subject.accent else _DEFAULT_ACCENT[subject.kind]
    parts = _BUILDERS[subject.kind](rng.uniform, _vary(rng, main), accent or _vary(rng, main))
    if subject.color is None:
        parts = [part._replace(color=GREY) for part in parts]
    scale = rng.uniform(0.94, 1.06)
    return [_scale(part, scale) for part in parts]


def _vary(rng: np.random.Generator, color: Color) -> Color:
    shade = rng.uniform(0.94, 1.04)
    red, green, blue = (float(min(1.0, channel * shade)) for channel in color)
    return red, green, blue


def _scale(part: Part, scale: float) -> Part:
    (x, y, z), (a, b, c) = part.center, part.size
    return part._replace(
        center=(scale * x, scale * y, scale * z),
        size=(scale * a, scale * b, scale * c),
        rounding=scale * part.rounding,
    )


_Uniform = Callable[[float, float], float]
_ALONG_X = turn("y", 90.0)  # a cone's axis, upper end towards +x
_ALONG_Y = turn("x", -90.0)  # a cone's axis, upper end towards +y


def _airplane(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    length, girth, span = u(0.60, 0.68), u(0.11, 0.14), u(0.58, 0.68)
    return [
        Part("ellipsoid", (0, 0, 0), (length, girth, girth), main),
        Part("box", (0.05, 0, 0), (u(0.12, 0.16), span, 0.012), accent, 0.015),
        Part("box", (-0.52, 0, 0.05), (0.07, u(0.22, 0.28), 0.01), accent, 0.012),
        Part("box", (-0.54, 0, 0.18), (0.08, 0.01, u(0.14, 0.19)), accent, 0.012, turn("y", -20)),
        Part("ellipsoid", (0.36, 0, 0.07), (0.14, 0.075, 0.07), _GLASS),
        Part("cone", (0.12, 0.3, -0.06), (0.05, 0.06, 0.11), _STEEL, 0.0, _ALONG_X),
        Part("cone", (0.12, -0.3, -0.06), (0.05, 0.06, 0.11), _STEEL, 0.0, _ALONG_X),
    ]


def _bed(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, head = u(0.60, 0.68), u(0.36, 0.44), u(0.24, 0.34)
    return [
        Part("box", (0, 0, -0.22), (length, width, 0.06), _WOOD, 0.01),
        Part("box", (0.08, 0, -0.08), (length - 0.1, width - 0.01, 0.08), main, 0.03),
        Part("box", (-length, 0, -0.06), (0.03, width, head), _WOOD, 0.02),
        Part("box", (-length + 0.17, 0.18, 0.04), (0.10, 0.13, 0.03), accent, 0.03),
        Part("box", (-length + 0.17, -0.18, 0.04), (0.10, 0.13, 0.03), accent, 0.03),
        Part("box", (length, 0, -0.18), (0.025, width, 0.12), _WOOD, 0.02),
    ]


def _boat(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, cabin = u(0.44, 0.50), u(0.21, 0.27), u(0.12, 0.17)
    bow = turn("z", 45)
    return [
        Part("box", (-0.12, 0, -0.2), (length, width, 0.11), main, 0.02),
        Part("box", (length - 0.12, 0, -0.2), (width * 0.7, width * 0.7, 0.11), main, 0.02, bow),
        Part("box", (-0.22, 0, 0.03), (cabin + 0.05, width * 0.65, cabin), accent, 0.01),
        Part("box", (-0.22, 0, 0.08), (cabin - 0.03, width * 0.65 + 0.015, 0.05), _DARK, 0.005),
        Part("cone", (-0.34, 0, 0.32), (0.06, 0.06, u(0.14, 0.2)), main),
    ]


def _bottle(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    body, width = u(0.30, 0.36), u(0.19, 0.25)
    return [
        Part("cone", (0, 0, -0.25), (width, width, body), main, 0.03),
        Part("cone", (0, 0, body - 0.12), (width, 0.07, 0.12), main, 0.02),
        Part("cone", (0, 0, body + 0.08), (0.065, 0.065, 0.12), main, 0.02),
        Part("cone", (0, 0, body + 0.24), (0.085, 0.085, 0.05), accent, 0.01),
        Part("cone", (0, 0, -0.25), (width + 0.012, width + 0.012, body * 0.45), _CREAM, 0.03),
    ]


def _cactus(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    height, left, right = u(0.40, 0.50), u(0.05, 0.2), u(-0.1, 0.08)
    return [
        Part("cone", (0, 0, 0.05), (0.12, 0.12, height), main, 0.06),
        Part("cone", (0, 0.24, left), (0.05, 0.05, 0.14), main, 0.04, _ALONG_Y),
        Part("cone", (0, 0.38, left + 0.15), (0.05, 0.05, 0.17), main, 0.04),
        Part("cone", (0, -0.24, right), (0.05, 0.05, 0.14), main, 0.04, _ALONG_Y),
        Part("cone", (0, -0.38, right + 0.15), (0.05, 0.05, 0.17), main, 0.04),
        Part("cone", (0, 0, -0.52), (0.18, 0.27, 0.17), accent, 0.01),
    ]


def _candle(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    height, width = u(0.34, 0.42), u(0.14, 0.19)
    return [
        Part("cone", (0, 0, -0.1), (width, width, height), main, 0.02),
        Part("cone", (0, 0, height - 0.06), (0.015, 0.015, 0.06), _DARK),
        Part("ellipsoid", (0, 0, height + 0.12), (0.07, 0.07, 0.15), (1.0, 0.78, 0.2)),
        Part("cone", (0, 0, -0.14 - height), (u(0.30, 0.36), 0.4, 0.035), accent, 0.01),
        Part(
            "torus", (0, u(0.40, 0.44), -0.12 - height), (0.1, 0.025, 0), accent, 0, turn("y", 90)
        ),
    ]


def _car(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, roof = u(0.60, 0.68), u(0.27, 0.31), u(0.10, 0.13)
    wheel, axle = u(0.13, 0.15), length * 0.6
    wheels = [
        Part("cone", (x, y, -0.2), (wheel, wheel, 0.045), accent, 0.015, _ALONG_Y)
        for x in (axle, -axle)
        for y in (width, -width)
    ]
    return [
        Part("box", (0, 0, -0.08), (length - 0.04, width - 0.04, 0.07), main, 0.04),
        Part("box", (-0.1, 0, 0.1), (0.27, width - 0.06, roof), main, 0.05),
        Part("box", (-0.1, 0, 0.12), (0.22, width + 0.005, roof * 0.6), _GLASS, 0.0),
        Part("box", (-0.1, 0, 0.12), (0.33, width - 0.07, roof * 0.6), _GLASS, 0.0),
        *wheels,
        Part("box", (length, 0.17, -0.05), (0.015, 0.06, 0.04), (1.0, 0.95, 0.6), 0.01),
        Part("box", (length, -0.17, -0.05), (0.015, 0.06, 0.04), (1.0, 0.95, 0.6), 0.01),
    ]


def _castle(u: _Uniform, main: Color, accent: Color) -> list[Part]:
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
        Part("box", (side, 0, -0.34), (0.02, 0.1, 0.13), _DARK),
    ]


def _chair(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    width, seat, leg = u(0.30, 0.37), u(-0.12, -0.02), u(0.035, 0.055)
    back = u(0.30, 0.38)
    foot = -0.62
    legs = [
        Part("box", (x, y, (seat + foot) / 2), (leg, leg, (seat - foot) / 2), accent, 0.005)
        for x in (width - leg, leg - width)
        for y in (width - leg, leg - width)
    ]
    return [
        Part("box", (0, 0, seat), (width, width, 0.035), main, 0.02),
        Part("box", (-width + 0.02, 0, seat + back), (0.03, width - 0.01, back), main, 0.02),
        *legs,
    ]


def _duck(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    body, head = u(0.42, 0.48), u(0.20, 0.24)
    x = body * 0.62
    return [
        Part("ellipsoid", (-0.05, 0, -0.2), (body, 0.31, 0.27), main),
        Part("ellipsoid", (x, 0, 0.22), (head, head, head), main),
        Part("ellipsoid", (x + head + 0.06, 0, 0.17), (0.15, 0.1, 0.045), accent),
        Part("ellipsoid", (x + head * 0.7, 0.12, 0.3), (0.04, 0.04, 0.04), _DARK),
        Part("ellipsoid", (x + head * 0.7, -0.12, 0.3), (0.04, 0.04, 0.04), _DARK),
        Part("ellipsoid", (-0.1, 0.28, -0.15), (0.24, 0.07, 0.15), main),
        Part("ellipsoid", (-0.1, -0.28, -0.15), (0.24, 0.07, 0.15), main),
        Part("ellipsoid", (-0.05 - body, 0, -0.02), (0.14, 0.13, 0.06), main, 0, turn("y", 35)),
    ]


def _fish(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    length, height = u(0.44, 0.50), u(0.25, 0.31)
    tail = -length - 0.1
    return [
        Part("ellipsoid", (0.1, 0, 0), (length, 0.16, height), main),
        Part("box", (tail, 0, 0.13), (0.17, 0.02, 0.07), accent, 0.02, turn("y", 45)),
        Part("box", (tail, 0, -0.13), (0.17, 0.02, 0.07), accent, 0.02, turn("y", -45)),
        Part("box", (0.05, 0, height), (0.16, 0.015, u(0.08, 0.12)), accent, 0.02, turn("y", -12)),
        Part("box", (0.12, 0.18, -0.08), (0.09, 0.06, 0.012), accent, 0.01, turn("x", -30)),
        Part("box", (0.12, -0.18, -0.08), (0.09, 0.06, 0.012), accent, 0.01, turn("x", 30)),
        Part("ellipsoid", (length - 0.08, 0.115, 0.07), (0.05, 0.04, 0.05), _DARK),
        Part("ellipsoid", (length - 0.08, -0.115, 0.07), (0.05, 0.04, 0.05), _DARK),
    ]


def _house(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    depth, width, wall = u(0.40, 0.46), u(0.40, 0.48), u(0.24, 0.30)
    side = (width + 0.06) / np.sqrt(2)
    roof = turn("x", 45)
    return [
        Part("box", (0, 0, -0.25), (depth, width, wall), main),
        # The roof is a square bar on its edge: its lower half lies within the walls.
        Part("box", (0, 0, wall - 0.26), (depth + 0.06, side, side), accent, 0.0, roof),
        Part("box", (0, 0, -0.2), (depth + 0.061, width, wall + 0.04), main),
        Part("box", (depth + 0.06, 0, wall * 0.5 - 0.55), (0.02, 0.09, wall * 0.55), _WOOD),
        Part("box", (depth + 0.06, 0.27, -0.2), (0.02, 0.08, 0.08), _GLASS),
        Part("box", (depth + 0.06, -0.27, -0.2), (0.02, 0.08, 0.08), _GLASS),
        Part("box", (-0.2, 0.22, wall + 0.05), (0.07, 0.07, 0.22), (0.5, 0.3, 0.25)),
    ]


def _lamp(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    shade, drop = u(0.34, 0.42), u(0.19, 0.24)
    return [
        Part("cone", (0, 0, 0.38), (shade, shade * 0.55, drop), main, 0.01),
        Part("cone", (0, 0, -0.2), (0.035, 0.035, 0.42), accent),
        Part("cone", (0, 0, -0.62), (u(0.24, 0.30), 0.2, 0.045), accent, 0.01),
    ]


def _mug(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    width, height = u(0.32, 0.38), u(0.36, 0.42)
    handle = u(0.19, 0.23)
    return [
        Part("cone", (0, 0, 0), (width, width, height), main, 0.03),
        Part("cone", (0, 0, height + 0.02), (width - 0.06, width - 0.06, 0.02), _DARK),
        Part("torus", (0, -width - 0.05, 0), (handle, 0.055, 0), accent, 0, turn("y", 90)),
    ]


def _mushroom(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    cap, height = u(0.52, 0.60), u(0.28, 0.36)
    return [
        Part("ellipsoid", (0, 0, 0.15), (cap, cap, height), main),
        Part("cone", (0, 0, -0.3), (u(0.17, 0.22), 0.14, 0.32), accent, 0.02),
        Part("cone", (0, 0, 0.01), (cap * 0.9, cap * 0.97, 0.05), accent, 0.01),
        Part("ellipsoid", (cap * 0.62, 0, 0.35), (0.1, 0.1, 0.07), _CREAM, 0, turn("y", 35)),
        Part("ellipsoid", (-cap * 0.35, cap * 0.5, 0.36), (0.1, 0.1, 0.07), _CREAM),
        Part("ellipsoid", (-cap * 0.35, -cap * 0.5, 0.36), (0.1, 0.1, 0.07), _CREAM),
        Part("ellipsoid", (0, 0, 0.13 + height), (0.1, 0.1, 0.05), _CREAM),
    ]


def _rabbit(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    ear, tilt, head = u(0.20, 0.26), u(8, 18), u(0.22, 0.25)
    return [
        Part("ellipsoid", (-0.05, 0, -0.36), (0.34, 0.30, 0.30), main),
        Part("ellipsoid", (0.14, 0, 0.06), (head, head, head), main),
        Part("ellipsoid", (0.08, 0.11, 0.22 + ear), (0.06, 0.085, ear), main, 0, turn("x", -tilt)),
        Part("ellipsoid", (0.08, -0.11, 0.22 + ear), (0.06, 0.085, ear), main, 0, turn("x", tilt)),
        Part("ellipsoid", (0.14 + head * 0.85, 0.1, 0.12), (0.04, 0.04, 0.045), _DARK),
        Part("ellipsoid", (0.14 + head * 0.85, -0.1, 0.12), (0.04, 0.04, 0.045), _DARK),
        Part("ellipsoid", (0.14 + head, 0, 0.03), (0.04, 0.045, 0.035), (0.95, 0.5, 0.6)),
        Part("ellipsoid", (0.24, 0.14, -0.6), (0.16, 0.09, 0.07), accent),
        Part("ellipsoid", (0.24, -0.14, -0.6), (0.16, 0.09, 0.07), accent),
        Part("ellipsoid", (-0.4, 0, -0.42), (0.1, 0.1, 0.1), (0.97, 0.97, 0.97)),
    ]


def _robot(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    chest, head = u(0.24, 0.29), u(0.16, 0.20)
    top = 0.17
    eyes = top + head + 0.03
    return [
        Part("box", (0, 0, -0.06), (0.17, chest, 0.23), main, 0.02),
        Part("box", (0, 0, top + head), (head, head + 0.03, head * 0.85), main, 0.02),
        Part("box", (0, chest + 0.09, -0.06), (0.06, 0.05, 0.24), accent, 0.02),
        Part("box", (0, -chest - 0.09, -0.06), (0.06, 0.05, 0.24), accent, 0.02),
        Part("box", (0, 0.13, -0.5), (0.08, 0.08, 0.2), accent, 0.015),
        Part("box", (0, -0.13, -0.5), (0.08, 0.08, 0.2), accent, 0.015),
        Part("ellipsoid", (head + 0.02, 0.09, eyes), (0.03, 0.05, 0.05), (1, 0.9, 0.3)),
        Part("ellipsoid", (head + 0.02, -0.09, eyes), (0.03, 0.05, 0.05), (1, 0.9, 0.3)),
        Part("box", (0.18, 0, 0.0), (0.02, 0.12, 0.08), _DARK),
        Part("cone", (0, 0, top + 2 * head + 0.05), (0.02, 0.02, 0.09), _STEEL),
        Part("ellipsoid", (0, 0, top + 2 * head + 0.15), (0.045, 0.045, 0.045), (0.9, 0.2, 0.2)),
    ]


def _rocket(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    girth, nose = u(0.17, 0.21), u(0.15, 0.19)
    fins = [
        Part("box", (x, y, -0.45), (0.015 + abs(x) * 0.5, 0.015 + abs(y) * 0.5, 0.13), accent, 0.01)
        for x, y in ((girth + 0.08, 0), (-girth - 0.08, 0), (0, girth + 0.08), (0, -girth - 0.08))
    ]
    return [
        Part("cone", (0, 0, -0.1), (girth, girth, 0.42), main, 0.01),
        Part("cone", (0, 0, 0.32 + nose), (girth, 0.02, nose), accent, 0.01),
        *fins,
        Part("ellipsoid", (girth, 0, 0.12), (0.03, 0.09, 0.09), _GLASS),
        Part("cone", (0, 0, -0.57), (0.15, 0.1, 0.05), _DARK),
    ]


def _snowman(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    low, mid, head = u(0.32, 0.36), u(0.23, 0.26), u(0.17, 0.19)
    z_mid = -0.4 + low * 0.7 + mid * 0.7
    z_head = z_mid + mid * 0.7 + head * 0.7
    return [
        Part("ellipsoid", (0, 0, -0.4), (low, low, low), main),
        Part("ellipsoid", (0, 0, z_mid), (mid, mid, mid), main),
        Part("ellipsoid", (0, 0, z_head), (head, head, head), main),
        Part("cone", (head + 0.08, 0, z_head), (0.05, 0.005, 0.11), _ORANGE, 0, _ALONG_X),
        Part("ellipsoid", (head * 0.88, 0.07, z_head + 0.07), (0.03, 0.03, 0.03), _DARK),
        Part("ellipsoid", (head * 0.88, -0.07, z_head + 0.07), (0.03, 0.03, 0.03), _DARK),
        Part("ellipsoid", (mid * 0.95, 0, z_mid + 0.08), (0.035, 0.035, 0.035), _DARK),
        Part("ellipsoid", (mid * 0.97, 0, z_mid - 0.08), (0.035, 0.035, 0.035), _DARK),
        Part("cone", (0, 0, z_head + head * 0.85), (0.22, 0.22, 0.015), accent, 0.005),
        Part("cone", (0, 0, z_head + head * 0.85 + 0.11), (0.13, 0.13, 0.1), accent, 0.005),
    ]


def _sofa(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    width, depth, back = u(0.58, 0.66), u(0.28, 0.33), u(0.30, 0.37)
    arm = u(0.19, 0.24)
    return [
        Part("box", (0, 0, -0.28), (depth, width, 0.1), main, 0.02),
        Part("box", (-depth + 0.06, 0, -0.38 + back), (0.07, width, back), main, 0.03),
        Part("box", (0, width, -0.36 + arm), (depth, 0.06, arm), main, 0.03),
        Part("box", (0, -width, -0.36 + arm), (depth, 0.06, arm), main, 0.03),
        Part(
            "box",
            (0.08, width / 2 - 0.03, -0.13),
            (depth - 0.1, width / 2 - 0.07, 0.03),
            accent,
            0.03,
        ),
        Part(
            "box",
            (0.08, 0.03 - width / 2, -0.13),
            (depth - 0.1, width / 2 - 0.07, 0.03),
            accent,
            0.03,
        ),
    ]


def _table(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    depth, width, leg = u(0.38, 0.46), u(0.56, 0.66), u(0.04, 0.06)
    top = u(0.12, 0.22)
    foot = -0.5
    legs = [
        Part("box", (x, y, (top + foot) / 2), (leg, leg, (top - foot) / 2), accent, 0.005)
        for x in (depth - leg, leg - depth)
        for y in (width - leg, leg - width)
    ]
    return [Part("box", (0, 0, top), (depth, width, 0.04), main, 0.015), *legs]


def _teapot(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    body, height = u(0.38, 0.43), u(0.30, 0.35)
    return [
        Part("ellipsoid", (0, 0, -0.05), (body, body, height), main),
        Part("cone", (0, body + 0.1, 0.06), (0.1, 0.045, 0.22), accent, 0.01, turn("x", -50)),
        Part("torus", (0, -body - 0.06, 0.0), (0.18, 0.04, 0), main, 0, turn("y", 90)),
        Part("cone", (0, 0, height - 0.06), (0.2, 0.14, 0.03), main, 0.015),
        Part("ellipsoid", (0, 0, height + 0.04), (0.07, 0.07, 0.07), main),
        Part("cone", (0, 0, -height - 0.03), (0.24, 0.22, 0.03), main, 0.01),
    ]


def _tree(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    crown, lift = u(0.34, 0.40), u(0.22, 0.30)
    return [
        Part("ellipsoid", (0, 0, lift), (crown, crown, crown), main),
        Part("ellipsoid", (0.2, 0.16, lift - 0.12), (0.27, 0.27, 0.25), main),
        Part("ellipsoid", (-0.2, 0.18, lift - 0.1), (0.27, 0.27, 0.25), main),
        Part("ellipsoid", (0.02, -0.24, lift - 0.12), (0.28, 0.28, 0.25), main),
        Part("cone", (0, 0, -0.38), (u(0.11, 0.14), 0.08, 0.3), accent, 0.01),
    ]


def _truck(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    cargo, width, tall = u(0.36, 0.41), u(0.24, 0.28), u(0.24, 0.30)
    wheels = [
        Part("cone", (x, y, -0.32), (0.12, 0.12, 0.05), _DARK, 0.01, _ALONG_Y)
        for x in (0.42, -0.45)
        for y in (width - 0.02, 0.02 - width)
    ]
    return [
        Part("box", (cargo * -1 + 0.12, 0, -0.2 + tall), (cargo, width, tall), main, 0.01),
        Part("box", (0.44, 0, -0.05), (0.18, width - 0.02, 0.2), accent, 0.02),
        Part("box", (0.56, 0, 0.03), (0.085, width - 0.05, 0.07), _GLASS, 0.0),
        Part("box", (0.46, 0, 0.03), (0.09, width + 0.01, 0.07), _GLASS, 0.0),
        Part("box", (0, 0, -0.25), (0.6, width - 0.05, 0.05), _DARK),
        *wheels,
        Part("box", (0.64, 0, -0.2), (0.01, 0.2, 0.04), (1.0, 0.95, 0.6)),
    ]


def _umbrella(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    span, dome = u(0.60, 0.68), u(0.16, 0.20)
    return [
        Part("cone", (0, 0, 0.3), (span, 0.05, dome), main, 0.015),
        Part("cone", (0, 0, 0.35 + dome), (0.02, 0.015, 0.06), accent),
        Part("cone", (0, 0, -0.15), (0.022, 0.022, 0.5), accent),
        Part("torus", (0, 0.09, -0.63), (0.09, 0.03, 0), accent, 0, turn("y", 90)),
    ]


def _windmill(u: _Uniform, main: Color, accent: Color) -> list[Part]:
    base, spin, blade = u(0.26, 0.31), u(0, 90), u(0.27, 0.31)
    hub = 0.3

    def sail(angle: float) -> Part:
        radians = np.deg2rad(angle)
        center = (0.27, -0.32 * np.sin(radians), hub + 0.32 * np.cos(radians))
        return Part("box", center, (0.012, 0.065, blade), accent, 0.01, turn("x", angle))

    return [
        Part("cone", (0, 0, -0.2), (base, 0.17, 0.45), main),
        Part("cone", (0, 0, 0.36), (0.2, 0.02, 0.11), (0.45, 0.25, 0.2)),
        Part("cone", (0.2, 0, hub), (0.05, 0.05, 0.09), _DARK, 0, _ALONG_X),
        *[sail(spin + quarter) for quarter in (0, 90, 180, 270)],
        Part("box", (base * 0.85, 0, -0.52), (0.06, 0.08, 0.13), _WOOD),
    ]


_BUILDERS: dict[str, Callable[[_Uniform, Color, Color], list[Part]]] = {
    "airplane": _airplane,
    "bed": _bed,
    "boat": _boat,
    "bottle": _bottle,
    "cactus": _cactus,
    "candle": _candle,
    "car": _car,
    "castle": _castle,
    "chair": _chair,
    "duck": _duck,
    "fish": _fish,
    "house": _house,
    "lamp": _lamp,
    "mug": _mug,
    "mushroom": _mushroom,
    "rabbit": _rabbit,
    "robot": _robot,
    "rocket": _rocket,
    "snowman": _snowman,
    "sofa": _sofa,
    "table": _table,
    "teapot": _teapot,
    "tree": _tree,
    "truck": _truck,
    "umbrella": _umbrella,
    "windmill": _windmill,
}
