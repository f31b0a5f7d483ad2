"""Plants, animals and figures: cactus, duck, fish, mushroom, rabbit, robot, snowman, tree."""

from __future__ import annotations

from dreamfusion_jax.toybox.kinds.materials import (
    ALONG_X,
    ALONG_Y,
    CREAM,
    DARK,
    ORANGE,
    STEEL,
    WOOD,
    Builder,
    Color,
    Uniform,
)
from dreamfusion_jax.toybox.shapes import Part, turn


def _cactus(u: Uniform, main: Color, accent: Color) -> list[Part]:
    height, left, right = u(0.40, 0.50), u(0.05, 0.2), u(-0.1, 0.08)
    return [
        Part("cone", (0, 0, 0.05), (0.12, 0.12, height), main, 0.06),
        Part("cone", (0, 0.24, left), (0.05, 0.05, 0.14), main, 0.04, ALONG_Y),
        Part("cone", (0, 0.38, left + 0.15), (0.05, 0.05, 0.17), main, 0.04),
        Part("cone", (0, -0.24, right), (0.05, 0.05, 0.14), main, 0.04, ALONG_Y),
        Part("cone", (0, -0.38, right + 0.15), (0.05, 0.05, 0.17), main, 0.04),
        Part("cone", (0, 0, -0.52), (0.18, 0.27, 0.17), accent, 0.01),
    ]


def _duck(u: Uniform, main: Color, accent: Color) -> list[Part]:
    body, head = u(0.42, 0.48), u(0.20, 0.24)
    x = body * 0.62
    return [
        Part("ellipsoid", (-0.05, 0, -0.2), (body, 0.31, 0.27), main),
        Part("ellipsoid", (x, 0, 0.22), (head, head, head), main),
        Part("ellipsoid", (x + head + 0.07, 0, 0.16), (0.17, 0.13, 0.07), accent),
        Part("ellipsoid", (x + head * 0.6, 0.13, 0.31), (0.065, 0.065, 0.065), DARK),
        Part("ellipsoid", (x + head * 0.6, -0.13, 0.31), (0.065, 0.065, 0.065), DARK),
        Part("ellipsoid", (-0.1, 0.28, -0.15), (0.24, 0.07, 0.15), main),
        Part("ellipsoid", (-0.1, -0.28, -0.15), (0.24, 0.07, 0.15), main),
        Part("ellipsoid", (-0.05 - body, 0, 0.02), (0.2, 0.14, 0.08), main, 0, turn("y", 40)),
    ]


def _fish(u: Uniform, main: Color, accent: Color) -> list[Part]:
    length, height = u(0.44, 0.50), u(0.25, 0.31)
    tail = -length - 0.1
    return [
        Part("ellipsoid", (0.1, 0, 0), (length, 0.16, height), main),
        Part("box", (tail, 0, 0.13), (0.17, 0.02, 0.07), accent, 0.02, turn("y", 45)),
        Part("box", (tail, 0, -0.13), (0.17, 0.02, 0.07), accent, 0.02, turn("y", -45)),
        Part("box", (0.05, 0, height), (0.16, 0.015, u(0.08, 0.12)), accent, 0.02, turn("y", -12)),
        Part("box", (0.12, 0.18, -0.08), (0.09, 0.06, 0.012), accent, 0.01, turn("x", -30)),
        Part("box", (0.12, -0.18, -0.08), (0.09, 0.06, 0.012), accent, 0.01, turn("x", 30)),
        Part("ellipsoid", (length - 0.1, 0.115, 0.07), (0.075, 0.055, 0.075), DARK),
        Part("ellipsoid", (length - 0.1, -0.115, 0.07), (0.075, 0.055, 0.075), DARK),
    ]


def _mushroom(u: Uniform, main: Color, accent: Color) -> list[Part]:
    cap, height = u(0.52, 0.60), u(0.28, 0.36)
    return [
        Part("ellipsoid", (0, 0, 0.15), (cap, cap, height), main),
        Part("cone", (0, 0, -0.3), (u(0.17, 0.22), 0.14, 0.32), accent, 0.02),
        Part("cone", (0, 0, 0.01), (cap * 0.9, cap * 0.97, 0.05), accent, 0.01),
        Part("ellipsoid", (cap * 0.62, 0, 0.35), (0.1, 0.1, 0.07), CREAM, 0, turn("y", 35)),
        Part("ellipsoid", (-cap * 0.35, cap * 0.5, 0.36), (0.1, 0.1, 0.07), CREAM),
        Part("ellipsoid", (-cap * 0.35, -cap * 0.5, 0.36), (0.1, 0.1, 0.07), CREAM),
        Part("ellipsoid", (0, 0, 0.13 + height), (0.1, 0.1, 0.05), CREAM),
    ]


def _rabbit(u: Uniform, main: Color, accent: Color) -> list[Part]:
    ear, tilt, head = u(0.20, 0.26), u(8, 18), u(0.22, 0.25)
    return [
        Part("ellipsoid", (-0.05, 0, -0.36), (0.34, 0.30, 0.30), main),
        Part("ellipsoid", (0.2, 0, 0.06), (head, head, head), main),
        Part("ellipsoid", (0.1, 0.11, 0.22 + ear), (0.06, 0.085, ear), main, 0, turn("x", -tilt)),
        Part("ellipsoid", (0.1, -0.11, 0.22 + ear), (0.06, 0.085, ear), main, 0, turn("x", tilt)),
        Part("ellipsoid", (0.2 + head * 0.75, 0.12, 0.13), (0.065, 0.065, 0.07), DARK),
        Part("ellipsoid", (0.2 + head * 0.75, -0.12, 0.13), (0.065, 0.065, 0.07), DARK),
        Part("ellipsoid", (0.2 + head, 0, 0.01), (0.07, 0.07, 0.055), (0.95, 0.5, 0.6)),
        Part("ellipsoid", (0.28, 0.15, -0.6), (0.2, 0.1, 0.08), accent),
        Part("ellipsoid", (0.28, -0.15, -0.6), (0.2, 0.1, 0.08), accent),
        Part("ellipsoid", (-0.42, 0, -0.38), (0.15, 0.15, 0.15), (0.97, 0.97, 0.97)),
    ]


def _robot(u: Uniform, main: Color, accent: Color) -> list[Part]:
    chest, head = u(0.20, 0.25), u(0.17, 0.20)
    neck = 0.14
    crown = neck + 0.08 + 2 * head
    eyes = crown - 0.13
    arm, leg = chest + 0.14, 0.14
    return [
        Part("box", (0, 0, -0.08), (0.16, chest, 0.20), main, 0.02),
        Part("cone", (0, 0, neck), (0.07, 0.07, 0.08), DARK),
        Part("box", (0, 0, crown - head), (head, head + 0.04, head), main, 0.02),
        Part("box", (0, arm, -0.1), (0.08, 0.07, 0.24), accent, 0.02),
        Part("box", (0, -arm, -0.1), (0.08, 0.07, 0.24), accent, 0.02),
        Part("box", (0, leg, -0.48), (0.09, 0.085, 0.20), accent, 0.015),
        Part("box", (0, -leg, -0.48), (0.09, 0.085, 0.20), accent, 0.015),
        Part("box", (0.09, leg, -0.66), (0.17, 0.085, 0.06), accent, 0.015),
        Part("box", (0.09, -leg, -0.66), (0.17, 0.085, 0.06), accent, 0.015),
        Part("box", (head + 0.02, 0, eyes), (0.03, head + 0.02, 0.1), DARK),
        Part("ellipsoid", (head + 0.05, 0.1, eyes), (0.05, 0.07, 0.07), (1, 0.9, 0.3)),
        Part("ellipsoid", (head + 0.05, -0.1, eyes), (0.05, 0.07, 0.07), (1, 0.9, 0.3)),
        Part("box", (0.17, 0, -0.04), (0.03, 0.14, 0.11), CREAM),
        Part("box", (-0.27, 0, -0.04), (0.1, chest - 0.03, 0.17), DARK, 0.01),
        Part("cone", (0, 0, crown + 0.05), (0.03, 0.03, 0.07), STEEL),
        Part("ellipsoid", (0, 0, crown + 0.13), (0.06, 0.06, 0.06), (0.9, 0.2, 0.2)),
    ]


def _snowman(u: Uniform, main: Color, accent: Color) -> list[Part]:
    low, mid, head = u(0.32, 0.36), u(0.23, 0.26), u(0.20, 0.22)
    z_mid = -0.4 + low * 0.7 + mid * 0.7
    z_head = z_mid + mid * 0.7 + head * 0.7
    return [
        Part("ellipsoid", (0, 0, -0.4), (low, low, low), main),
        Part("ellipsoid", (0, 0, z_mid), (mid, mid, mid), main),
        Part("ellipsoid", (0, 0, z_head), (head, head, head), main),
        Part("cone", (head + 0.12, 0, z_head - 0.02), (0.08, 0.02, 0.16), ORANGE, 0.01, ALONG_X),
        Part("ellipsoid", (head * 0.75, 0.11, z_head + 0.08), (0.065, 0.065, 0.065), DARK),
        Part("ellipsoid", (head * 0.75, -0.11, z_head + 0.08), (0.065, 0.065, 0.065), DARK),
        Part("ellipsoid", (mid * 0.92, 0, z_mid + 0.04), (0.075, 0.075, 0.075), DARK),
        Part("ellipsoid", (low * 0.95, 0, -0.3), (0.085, 0.085, 0.085), DARK),
        Part("cone", (0, mid + 0.12, z_mid + 0.08), (0.06, 0.05, 0.2), WOOD, 0, turn("x", -70)),
        Part("cone", (0, -mid - 0.12, z_mid + 0.08), (0.06, 0.05, 0.2), WOOD, 0, turn("x", 70)),
        Part("cone", (0, 0, z_head + head * 0.85), (0.26, 0.26, 0.02), accent, 0.005),
        Part("cone", (0, 0, z_head + head * 0.85 + 0.11), (0.16, 0.16, 0.1), accent, 0.005),
    ]


def _tree(u: Uniform, main: Color, accent: Color) -> list[Part]:
    crown, lift = u(0.34, 0.40), u(0.22, 0.30)
    return [
        Part("ellipsoid", (0, 0, lift), (crown, crown, crown), main),
        Part("ellipsoid", (0.2, 0.16, lift - 0.12), (0.27, 0.27, 0.25), main),
        Part("ellipsoid", (-0.2, 0.18, lift - 0.1), (0.27, 0.27, 0.25), main),
        Part("ellipsoid", (0.02, -0.24, lift - 0.12), (0.28, 0.28, 0.25), main),
        Part("cone", (0, 0, -0.38), (u(0.11, 0.14), 0.08, 0.3), accent, 0.01),
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
