"""Things to stand in a room: bed, candle, chair, lamp, sofa, table."""

from __future__ import annotations

from dreamfusion_jax.toybox.kinds.materials import DARK, WOOD, Builder, Color, Uniform
from dreamfusion_jax.toybox.shapes import Part, turn


def _bed(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, head = u(0.60, 0.68), u(0.36, 0.44), u(0.24, 0.34)
    return [
        Part("box", (0, 0, -0.22), (length, width, 0.06), WOOD, 0.01),
        Part("box", (0.08, 0, -0.08), (length - 0.1, width - 0.01, 0.08), main, 0.03),
        Part("box", (-length, 0, -0.06), (0.03, width, head), WOOD, 0.02),
        Part("box", (-length + 0.17, 0.18, 0.04), (0.10, 0.13, 0.03), accent, 0.03),
        Part("box", (-length + 0.17, -0.18, 0.04), (0.10, 0.13, 0.03), accent, 0.03),
        Part("box", (length, 0, -0.18), (0.025, width, 0.12), WOOD, 0.02),
    ]


def _candle(u: Uniform, main: Color, accent: Color) -> list[Part]:
    height, width = u(0.34, 0.42), u(0.14, 0.19)
    return [
        Part("cone", (0, 0, -0.1), (width, width, height), main, 0.02),
        Part("cone", (0, 0, height - 0.06), (0.015, 0.015, 0.06), DARK),
        Part("ellipsoid", (0, 0, height + 0.12), (0.07, 0.07, 0.15), (1.0, 0.78, 0.2)),
        Part("cone", (0, 0, -0.14 - height), (u(0.30, 0.36), 0.4, 0.035), accent, 0.01),
        Part(
            "torus", (0, u(0.40, 0.44), -0.12 - height), (0.1, 0.025, 0), accent, 0, turn("y", 90)
        ),
    ]


def _chair(u: Uniform, main: Color, accent: Color) -> list[Part]:
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


def _lamp(u: Uniform, main: Color, accent: Color) -> list[Part]:
    shade, drop = u(0.34, 0.42), u(0.19, 0.24)
    return [
        Part("cone", (0, 0, 0.38), (shade, shade * 0.55, drop), main, 0.01),
        Part("cone", (0, 0, -0.2), (0.035, 0.035, 0.42), accent),
        Part("cone", (0, 0, -0.62), (u(0.24, 0.30), 0.2, 0.045), accent, 0.01),
    ]


def _sofa(u: Uniform, main: Color, accent: Color) -> list[Part]:
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


def _table(u: Uniform, main: Color, accent: Color) -> list[Part]:
    depth, width, leg = u(0.38, 0.46), u(0.56, 0.66), u(0.04, 0.06)
    top = u(0.12, 0.22)
    foot = -0.5
    legs = [
        Part("box", (x, y, (top + foot) / 2), (leg, leg, (top - foot) / 2), accent, 0.005)
        for x in (depth - leg, leg - depth)
        for y in (width - leg, leg - width)
    ]
    return [Part("box", (0, 0, top), (depth, width, 0.04), main, 0.015), *legs]


BUILDERS: dict[str, Builder] = {
    "bed": _bed,
    "candle": _candle,
    "chair": _chair,
    "lamp": _lamp,
    "sofa": _sofa,
    "table": _table,
}
