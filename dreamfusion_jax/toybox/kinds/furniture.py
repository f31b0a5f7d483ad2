"""Things to stand in a room: bed, candle, chair, lamp, sofa, table."""

from __future__ import annotations

from dreamfusion_jax.toybox.kinds.materials import (
    DARK,
    LAMPLIGHT,
    ORANGE,
    SNOW,
    WOOD,
    Builder,
    Color,
    Uniform,
    rod,
    shade,
)
from dreamfusion_jax.toybox.shapes import Part, turn


def _corners(x: float, y: float) -> list[tuple[float, float]]:
    return [(i, j) for i in (x, -x) for j in (y, -y)]


def _bed(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, width, head = u(0.64, 0.72), u(0.38, 0.45), u(0.26, 0.34)
    blanket = length - 0.2
    return [
        Part("box", (0, 0, -0.22), (length, width, 0.06), WOOD, 0.01),
        Part("box", (0, 0, -0.09), (length - 0.05, width - 0.03, 0.06), SNOW, 0.03),
        Part("box", (length - blanket, 0, -0.085), (blanket - 0.03, width, 0.075), main, 0.03),
        Part("box", (length - 2 * blanket + 0.07, 0, 0.02), (0.07, width, 0.01), SNOW, 0.02),
        Part("box", (-length, 0, -0.36 + head), (0.03, width, head), WOOD, 0.02),
        Part("box", (-length + 0.2, 0.19, 0.06), (0.1, 0.14, 0.035), accent, 0.035),
        Part("box", (-length + 0.2, -0.19, 0.06), (0.1, 0.14, 0.035), accent, 0.035),
        Part("box", (length, 0, -0.16), (0.025, width, 0.13), WOOD, 0.02),
        *[
            rod((x, y, -0.46), (x, y, -0.2), 0.04, shade(WOOD, 0.8))
            for x, y in _corners(length - 0.02, width - 0.04)
        ],
    ]


def _candle(u: Uniform, main: Color, accent: Color) -> list[Part]:
    height, width, plate = u(0.38, 0.46), u(0.13, 0.17), u(0.38, 0.44)
    ground = -0.62
    top = ground + 0.06 + 2 * height
    return [
        rod((0, 0, ground), (0, 0, top), width, main),
        Part("torus", (0, 0, top), (width - 0.03, 0.035, 0), main),
        rod((0, 0, top), (0, 0, top + 0.1), 0.015, DARK),
        Part("ellipsoid", (0, 0, top + 0.16), (0.065, 0.065, 0.12), ORANGE),
        rod((0, 0, top + 0.18), (0, 0, top + 0.33), 0.05, ORANGE, 0.004),
        Part("ellipsoid", (0.05, 0, top + 0.14), (0.04, 0.045, 0.07), LAMPLIGHT),
        Part("ellipsoid", (width, 0.03, top - 0.08), (0.035, 0.04, 0.12), main),
        Part("ellipsoid", (-0.5 * width, -0.86 * width, top - 0.12), (0.04, 0.035, 0.15), main),
        Part("cone", (0, 0, ground - 0.01), (plate - 0.1, plate, 0.03), accent, 0.01),
        Part("torus", (0, 0, ground + 0.03), (plate, 0.025, 0), accent),
        Part("tube", (0, 0, ground + 0.08), (width + 0.03, 0.015, 0.05), accent, 0.01),
        Part("torus", (0, plate + 0.1, ground + 0.02), (0.1, 0.028, 0), accent, 0, turn("y", 90)),
    ]


def _chair(u: Uniform, main: Color, accent: Color) -> list[Part]:
    width, seat, leg, back = u(0.31, 0.37), u(-0.12, -0.04), u(0.034, 0.046), u(0.36, 0.42)
    foot, side = -0.68, width - leg
    top = seat + 2 * back
    low = 0.5 * (seat + foot) - 0.05
    return [
        Part("box", (0, 0, seat), (width, width, 0.03), main, 0.02),
        *[
            Part("box", (x, y, (seat + foot) / 2), (leg, leg, (seat - foot) / 2), accent, 0.004)
            for x, y in _corners(side, side)
        ],
        *[Part("box", (0, y, low), (side, 0.02, 0.02), accent) for y in (side, -side)],
        # The back: two posts, a panel and a rail with a gap between.
        *[Part("box", (-side, y, seat + back), (leg, leg, back), main) for y in (side, -side)],
        Part("box", (-side, 0, top - 0.2), (0.022, side, 0.19), main, 0.015),
        Part("box", (-side, 0, seat + 0.15), (0.02, side, 0.04), main),
    ]


def _lamp(u: Uniform, main: Color, accent: Color) -> list[Part]:
    width, drop, pole = u(0.36, 0.44), u(0.19, 0.24), u(0.028, 0.038)
    top, ground = 0.66, -0.68
    low = top - 2 * drop
    return [
        Part("cone", (0, 0, top - drop), (width, width * 0.55, drop), main, 0.01),
        Part("cone", (0, 0, low - 0.005), (width * 0.88, width * 0.88, 0.012), LAMPLIGHT),
        Part("torus", (0, 0, low), (width, 0.018, 0), shade(main, 0.8)),
        Part("ellipsoid", (0, 0, low - 0.03), (0.09, 0.09, 0.1), SNOW),
        rod((0, 0, ground), (0, 0, low), pole, accent),
        Part("ellipsoid", (0, 0, ground + 0.12), (0.07, 0.07, 0.06), accent),
        Part("cone", (0, 0, ground), (u(0.25, 0.30), 0.2, 0.035), accent, 0.012),
        rod((0, 0.16, low - 0.24), (0, 0.16, low), 0.012, DARK),
        Part("ellipsoid", (0, 0.16, low - 0.24), (0.03, 0.03, 0.035), DARK),
    ]


def _sofa(u: Uniform, main: Color, accent: Color) -> list[Part]:
    width, depth, back, arm = u(0.62, 0.70), u(0.30, 0.35), u(0.33, 0.38), u(0.20, 0.24)
    ground, seat = -0.4, 0.5 * (u(0.62, 0.70) - 0.12)
    cushion = shade(main, 0.85) if accent == main else accent
    half = 0.5 * (width - 0.09)
    return [
        Part("box", (0, 0, ground + 0.12), (depth, width, 0.1), main, 0.02),
        Part("box", (-depth + 0.03, 0, ground + back), (0.06, width, back - 0.03), main, 0.04),
        *[
            Part("box", (0, y, ground + arm), (depth, 0.055, arm - 0.03), main, 0.03)
            for y in (width, -width)
        ],
        *[
            Part(
                "cone",
                (0, y, ground + 2 * arm),
                (0.1, 0.1, depth + 0.02),
                main,
                0.01,
                turn("y", 90),
            )
            for y in (width, -width)
        ],
        *[
            Part(
                "box", (0.08, y, ground + 0.28), (depth - 0.09, half - 0.05, 0.035), cushion, 0.045
            )
            for y in (half, -half)
        ],
        *[
            Part(
                "box",
                (-depth + 0.16, y, ground + back + 0.16),
                (0.03, half - 0.06, seat - 0.11),
                cushion,
                0.05,
                turn("y", -12),
            )
            for y in (half, -half)
        ],
        *[
            rod((x, y, ground - 0.1), (x, y, ground + 0.04), 0.03, WOOD, 0.04)
            for x, y in _corners(depth - 0.06, width - 0.04)
        ],
    ]


def _table(u: Uniform, main: Color, accent: Color) -> list[Part]:
    depth, width, leg, top = u(0.38, 0.46), u(0.60, 0.68), u(0.04, 0.052), u(0.14, 0.22)
    foot = -0.54
    inset = 0.07
    corners = _corners(depth - inset, width - inset)
    return [
        Part("box", (0, 0, top), (depth, width, 0.03), main, 0.015),
        *[
            Part("box", (x, 0, top - 0.1), (0.02, width - inset, 0.055), accent)
            for x, _ in corners[1:3]
        ],
        *[
            Part("box", (0, y, top - 0.1), (depth - inset, 0.02, 0.055), accent)
            for _, y in corners[:2]
        ],
        *[rod((x, y, foot), (x, y, top), 0.75 * leg, accent, 1.15 * leg) for x, y in corners],
    ]


BUILDERS: dict[str, Builder] = {
    "bed": _bed,
    "candle": _candle,
    "chair": _chair,
    "lamp": _lamp,
    "sofa": _sofa,
    "table": _table,
}
