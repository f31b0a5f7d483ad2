"""Plants, animals and figures: cactus, duck, fish, mushroom, rabbit, robot, snowman, tree."""

from __future__ import annotations

import numpy as np

from dreamfusion_jax.toybox.kinds.materials import (
    ALONG_X,
    CREAM,
    DARK,
    LAMPLIGHT,
    ORANGE,
    SNOW,
    STEEL,
    WOOD,
    Builder,
    Color,
    Uniform,
    rod,
    shade,
)
from dreamfusion_jax.toybox.shapes import Part, turn

_PINK: Color = (0.95, 0.5, 0.6)
_SIDES = (1, -1)


def _cactus(u: Uniform, main: Color, accent: Color) -> list[Part]:
    height, left, right = u(0.42, 0.50), u(0.05, 0.18), u(-0.1, 0.05)
    pot = -0.38

    def arm(side: int, low: float, rise: float) -> list[Part]:
        elbow = (0.0, side * 0.36, low)
        return [
            rod((0, 0, low), elbow, 0.045, main)._replace(rounding=0.045),
            rod(elbow, (0.0, side * 0.36, low + rise), 0.045, main)._replace(rounding=0.045),
        ]

    return [
        Part("cone", (0, 0, pot + height), (0.08, 0.08, height), main, 0.09),
        *arm(1, left, u(0.2, 0.28)),
        *arm(-1, right, u(0.24, 0.34)),
        Part("ellipsoid", (0, 0, pot + 2 * height + 0.1), (0.07, 0.07, 0.05), _PINK),
        Part("cone", (0, 0, pot - 0.16), (0.19, 0.27, 0.16), accent, 0.01),
        Part("cone", (0, 0, pot), (0.31, 0.31, 0.045), accent, 0.01),
        Part("cone", (0, 0, pot + 0.045), (0.26, 0.26, 0.015), shade(WOOD, 0.6)),
    ]


def _duck(u: Uniform, main: Color, accent: Color) -> list[Part]:
    body, head = u(0.44, 0.50), u(0.19, 0.22)
    x, z = body * 0.66, 0.3
    return [
        Part("ellipsoid", (-0.05, 0, -0.2), (body, 0.31, 0.26), main),
        rod((x - 0.1, 0, -0.15), (x, 0, z), 0.17, main, 0.13),
        Part("ellipsoid", (x, 0, z), (head, head, head), main),
        Part("ellipsoid", (x + head + 0.06, 0, z - 0.03), (0.16, 0.12, 0.04), accent),
        Part("ellipsoid", (x + head + 0.03, 0, z - 0.08), (0.12, 0.09, 0.03), shade(accent, 0.8)),
        *[
            Part("ellipsoid", (x + head * 0.6, y * head * 0.62, z + 0.07), (0.06, 0.06, 0.06), SNOW)
            for y in _SIDES
        ],
        *[
            Part(
                "ellipsoid", (x + head * 0.82, y * head * 0.72, z + 0.075), (0.04, 0.04, 0.04), DARK
            )
            for y in _SIDES
        ],
        *[
            Part(
                "ellipsoid",
                (-0.12, y * 0.28, -0.12),
                (0.27, 0.07, 0.15),
                shade(main, 0.85),
                0,
                turn("y", 12),
            )
            for y in _SIDES
        ],
        rod((-body + 0.1, 0, -0.15), (-body - 0.2, 0, 0.16), 0.15, main, 0.02),
        *[Part("ellipsoid", (0.08, y * 0.15, -0.46), (0.15, 0.09, 0.035), accent) for y in _SIDES],
    ]


def _fish(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, height = u(0.46, 0.52), u(0.26, 0.32)
    tail = 0.12 - length
    return [
        Part("ellipsoid", (0.14, 0, 0), (length, 0.17, height), main),
        rod((tail + 0.14, 0, 0), (tail - 0.12, 0, 0), 0.13, main, 0.04),
        *[
            Part(
                "ellipsoid",
                (tail - 0.24, 0, z * 0.14),
                (0.24, 0.03, 0.09),
                accent,
                0,
                turn("y", z * 48),
            )
            for z in _SIDES
        ],
        Part(
            "ellipsoid", (0.08, 0, height), (0.25, 0.025, u(0.14, 0.18)), accent, 0, turn("y", -12)
        ),
        Part("ellipsoid", (0.05, 0, -height), (0.14, 0.025, 0.1), accent, 0, turn("y", 15)),
        *[
            Part(
                "ellipsoid",
                (0.16, y * 0.2, -0.06),
                (0.13, 0.025, 0.07),
                accent,
                0,
                turn("z", y * -35) @ turn("y", -20),
            )
            for y in _SIDES
        ],
        *[
            Part("ellipsoid", (length - 0.1, y * 0.105, 0.08), (0.075, 0.05, 0.075), SNOW)
            for y in _SIDES
        ],
        *[
            Part("ellipsoid", (length - 0.085, y * 0.14, 0.085), (0.042, 0.03, 0.042), DARK)
            for y in _SIDES
        ],
        Part("torus", (length + 0.12, 0, -0.03), (0.045, 0.022, 0), shade(main, 0.6), 0, ALONG_X),
        Part("ellipsoid", (length - 0.24, 0, 0), (0.02, 0.16, height * 0.72), shade(main, 0.7)),
    ]


def _mushroom(u: Uniform, main: Color, accent: Color) -> list[Part]:
    cap, height, stem = u(0.56, 0.66), u(0.40, 0.50), u(0.15, 0.19)
    rim = 0.0

    def spot(around: float, up: float, size: float) -> Part:
        """Lies flat on the cap, `up` degrees above its rim."""
        x, z = np.cos(np.deg2rad(up)), np.sin(np.deg2rad(up))
        slope = float(np.rad2deg(np.arctan2(z / height, x / cap)))
        ahead, aside, _ = turn("z", around)[:, 0] * cap * x
        center = (float(ahead), float(aside), float(rim + height * z))
        leaning = turn("z", around) @ turn("y", 90 - slope)
        return Part("ellipsoid", center, (size, size, 0.03), SNOW, 0, leaning)

    return [
        Part("dome", (0, 0, rim), (cap, cap, height), main),
        Part("torus", (0, 0, rim), (cap - 0.04, 0.04, 0), main),
        Part("cone", (0, 0, rim - 0.03), (cap * 0.55, cap * 0.88, 0.035), shade(accent, 0.85)),
        rod((0, 0, -0.62), (0, 0, rim), stem * 1.25, accent, stem * 0.85),
        Part("torus", (0, 0, -0.2), (stem * 1.05, 0.035, 0), shade(accent, 0.9)),
        spot(10, 28, 0.11),
        spot(75, 40, 0.12),
        spot(140, 25, 0.10),
        spot(215, 38, 0.12),
        spot(290, 27, 0.11),
        spot(340, 68, 0.10),
    ]


def _rabbit(u: Uniform, main: Color, accent: Color) -> list[Part]:
    ear, tilt, head = u(0.21, 0.26), u(8, 16), u(0.20, 0.23)
    face, z = 0.2, 0.06

    def long_ear(side: int) -> list[Part]:
        leaning = turn("x", -side * tilt)
        base = (0.12, side * 0.11, z + head * 0.7 + ear)
        inner = (0.165, base[1], base[2])
        return [
            Part("ellipsoid", base, (0.05, 0.085, ear), main, 0, leaning),
            Part("ellipsoid", inner, (0.02, 0.045, ear * 0.75), _PINK, 0, leaning),
        ]

    return [
        Part("ellipsoid", (-0.06, 0, -0.34), (0.33, 0.28, 0.32), main),
        Part("ellipsoid", (0.13, 0, -0.33), (0.17, 0.18, 0.22), SNOW),
        Part("ellipsoid", (face, 0, z), (head, head * 0.95, head), main),
        *long_ear(1),
        *long_ear(-1),
        *[
            Part("ellipsoid", (face + head * 0.78, y * 0.105, z + 0.06), (0.05, 0.05, 0.06), DARK)
            for y in _SIDES
        ],
        *[
            Part("ellipsoid", (face + head * 0.85, y * 0.055, z - 0.07), (0.07, 0.07, 0.055), SNOW)
            for y in _SIDES
        ],
        Part("ellipsoid", (face + head + 0.03, 0, z - 0.02), (0.045, 0.05, 0.035), _PINK),
        *[Part("ellipsoid", (0.22, y * 0.2, -0.6), (0.22, 0.1, 0.075), accent) for y in _SIDES],
        *[
            rod((0.14, y * 0.12, -0.22), (0.27, y * 0.1, -0.42), 0.075, accent, 0.065)
            for y in _SIDES
        ],
        *[Part("ellipsoid", (-0.12, y * 0.22, -0.44), (0.2, 0.1, 0.2), main) for y in _SIDES],
        Part("ellipsoid", (-0.42, 0, -0.36), (0.14, 0.14, 0.14), SNOW),
    ]


def _robot(u: Uniform, main: Color, accent: Color) -> list[Part]:
    chest, head, tall = u(0.21, 0.26), u(0.16, 0.19), u(0.20, 0.23)
    neck = -0.06 + tall + 0.02
    crown = neck + 0.06 + 2 * head
    eyes = crown - head * 0.85
    shoulder, hip = chest + 0.11, 0.5 * chest + 0.01

    def arm(side: int) -> list[Part]:
        top = (0.0, side * shoulder, -0.06 + tall - 0.09)
        elbow = (0.0, side * (shoulder + 0.1), -0.14)
        hand = (0.1, side * (shoulder + 0.11), -0.32)
        return [
            Part("ellipsoid", top, (0.085, 0.085, 0.085), accent),
            rod(top, elbow, 0.055, accent),
            rod(elbow, hand, 0.06, accent),
            Part("ellipsoid", hand, (0.075, 0.065, 0.075), DARK),
        ]

    def leg(side: int) -> list[Part]:
        return [
            rod((0, side * hip, -0.62), (0, side * hip, -0.2), 0.075, accent),
            Part("box", (0.06, side * hip, -0.68), (0.15, 0.09, 0.045), accent, 0.02),
        ]

    return [
        Part("box", (0, 0, -0.06), (0.15, chest, tall), main, 0.025),
        Part("cone", (0, 0, neck + 0.02), (0.07, 0.07, 0.06), DARK),
        Part("box", (0, 0, crown - head), (head - 0.01, head + 0.04, head), main, 0.025),
        *arm(1),
        *arm(-1),
        *leg(1),
        *leg(-1),
        Part("box", (head - 0.01, 0, eyes), (0.04, head, 0.075), DARK),
        *[
            Part("ellipsoid", (head + 0.03, y * 0.085, eyes), (0.03, 0.055, 0.055), LAMPLIGHT)
            for y in _SIDES
        ],
        Part("box", (head, 0, crown - 1.65 * head), (0.03, 0.09, 0.018), DARK),
        Part("box", (0.17, 0, 0.0), (0.02, chest * 0.65, 0.1), CREAM),
        *[
            Part("ellipsoid", (0.195, y, 0.03), (0.02, 0.032, 0.032), color)
            for y, color in (
                (0.08, (0.85, 0.15, 0.15)),
                (0.0, (0.95, 0.8, 0.2)),
                (-0.08, (0.2, 0.7, 0.3)),
            )
        ],
        Part("box", (-0.24, 0, -0.02), (0.08, chest * 0.7, 0.14), DARK, 0.02),
        rod((0, 0, crown), (0, 0, crown + 0.17), 0.018, STEEL),
        Part("ellipsoid", (0, 0, crown + 0.18), (0.05, 0.05, 0.05), (0.9, 0.2, 0.2)),
        *[
            Part(
                "cone",
                (0, y * (head + 0.08), crown - head),
                (0.06, 0.06, 0.035),
                STEEL,
                0,
                turn("x", 90),
            )
            for y in _SIDES
        ],
    ]


def _snowman(u: Uniform, main: Color, accent: Color) -> list[Part]:
    low, mid, head = u(0.31, 0.35), u(0.23, 0.26), u(0.18, 0.20)
    z_low = -0.44
    z_mid = z_low + low * 0.7 + mid * 0.7
    z_head = z_mid + mid * 0.7 + head * 0.75
    brim = z_head + head * 0.8

    def arm(side: int) -> list[Part]:
        wrist = (0.06, side * (mid + 0.26), z_mid + 0.2)
        return [
            rod((0, side * mid * 0.8, z_mid + 0.06), wrist, 0.026, WOOD, 0.02),
            rod(wrist, (0.1, side * (mid + 0.28), z_mid + 0.32), 0.018, WOOD),
            rod(wrist, (0.06, side * (mid + 0.39), z_mid + 0.22), 0.018, WOOD),
        ]

    return [
        Part("ellipsoid", (0, 0, z_low), (low, low, low * 0.95), main),
        Part("ellipsoid", (0, 0, z_mid), (mid, mid, mid), main),
        Part("ellipsoid", (0, 0, z_head), (head, head, head), main),
        rod((head * 0.9, 0, z_head), (head + 0.24, 0, z_head - 0.03), 0.05, ORANGE, 0.008),
        *[
            Part("ellipsoid", (head * 0.86, y * 0.075, z_head + 0.06), (0.04, 0.04, 0.045), DARK)
            for y in _SIDES
        ],
        *[
            Part("ellipsoid", (mid * 0.97, 0, z_mid + z), (0.04, 0.045, 0.045), DARK)
            for z in (0.07, -0.07)
        ],
        Part("ellipsoid", (low * 0.97, 0, z_low + 0.1), (0.045, 0.05, 0.05), DARK),
        *arm(1),
        *arm(-1),
        Part("torus", (0, 0, z_head - head * 0.78), (head * 0.78, 0.05, 0), accent),
        Part(
            "box", (mid * 0.82, 0.11, z_mid + 0.1), (0.03, 0.045, 0.13), accent, 0.01, turn("y", 15)
        ),
        Part("cone", (0, 0, brim), (0.25, 0.25, 0.015), accent, 0.008),
        Part("cone", (0, 0, brim + 0.11), (0.15, 0.16, 0.1), accent, 0.008),
        Part("cone", (0, 0, brim + 0.04), (0.162, 0.162, 0.025), shade(accent, 0.6)),
    ]


def _tree(u: Uniform, main: Color, accent: Color) -> list[Part]:
    crown, lift, trunk = u(0.30, 0.35), u(0.22, 0.30), u(0.085, 0.11)
    ground = -0.72

    def blob(x: float, y: float, z: float, size: float, factor: float) -> Part:
        return Part("ellipsoid", (x, y, lift + z), (size, size, size * 0.92), shade(main, factor))

    return [
        blob(0, 0, 0.16, crown, 1.0),
        blob(0.24, 0.14, -0.02, u(0.23, 0.28), 0.95),
        blob(-0.22, 0.2, 0.0, u(0.23, 0.28), 0.9),
        blob(-0.16, -0.24, -0.02, u(0.23, 0.28), 1.0),
        blob(0.2, -0.2, 0.03, u(0.22, 0.27), 0.9),
        blob(0.05, 0.02, -0.06, 0.3, 0.85),
        rod((0, 0, ground), (0, 0, lift - 0.1), trunk * 1.2, accent, trunk * 0.8),
        rod((0, 0, -0.25), (0.05, 0.26, lift - 0.05), 0.05, accent, 0.035),
        rod((0, 0, -0.2), (-0.05, -0.26, lift - 0.05), 0.05, accent, 0.035),
        rod((0, 0, ground), (0, 0, ground + 0.14), trunk * 2.1, accent, trunk * 1.0),
    ]


BUILDERS: dict[str, Builder] = {
    "cactus": _cactus,
    "duck": _duck,
    "fish": _fish,
    "mushroom": _mushroom,
    "rabbit": _rabbit,
    "robot": _robot,
    "snowman": _snowman,
    "tree": _tree,
}
