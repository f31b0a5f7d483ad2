"""Things to hold: bottle, mug, teapot, umbrella."""

from __future__ import annotations

from dreamfusion_jax.toybox.kinds.materials import CREAM, DARK, Builder, Color, Uniform
from dreamfusion_jax.toybox.shapes import Part, turn


def _bottle(u: Uniform, main: Color, accent: Color) -> list[Part]:
    body, width = u(0.30, 0.36), u(0.19, 0.25)
    return [
        Part("cone", (0, 0, -0.25), (width, width, body), main, 0.03),
        Part("cone", (0, 0, body - 0.12), (width, 0.07, 0.12), main, 0.02),
        Part("cone", (0, 0, body + 0.08), (0.065, 0.065, 0.12), main, 0.02),
        Part("cone", (0, 0, body + 0.24), (0.085, 0.085, 0.05), accent, 0.01),
        Part("cone", (0, 0, -0.25), (width + 0.012, width + 0.012, body * 0.45), CREAM, 0.03),
    ]


def _mug(u: Uniform, main: Color, accent: Color) -> list[Part]:
    width, height = u(0.32, 0.38), u(0.36, 0.42)
    handle = u(0.24, 0.28)
    return [
        Part("cone", (0, 0, 0), (width, width, height), main, 0.03),
        Part("cone", (0, 0, height + 0.02), (width - 0.06, width - 0.06, 0.02), DARK),
        Part("torus", (0, -width - 0.13, 0), (handle, 0.08, 0), accent, 0, turn("y", 90)),
    ]


def _teapot(u: Uniform, main: Color, accent: Color) -> list[Part]:
    body, height = u(0.38, 0.43), u(0.30, 0.35)
    return [
        Part("ellipsoid", (0, 0, -0.05), (body, body, height), main),
        Part("cone", (0, body + 0.12, 0.06), (0.13, 0.07, 0.25), accent, 0.01, turn("x", -50)),
        Part("torus", (0, -body - 0.08, 0.0), (0.21, 0.075, 0), main, 0, turn("y", 90)),
        Part("cone", (0, 0, height - 0.06), (0.2, 0.14, 0.03), main, 0.015),
        Part("ellipsoid", (0, 0, height + 0.04), (0.07, 0.07, 0.07), main),
        Part("cone", (0, 0, -height - 0.03), (0.24, 0.22, 0.03), main, 0.01),
    ]


def _umbrella(u: Uniform, main: Color, accent: Color) -> list[Part]:
    span, dome = u(0.54, 0.62), u(0.18, 0.22)
    return [
        Part("cone", (0, 0, 0.3), (span, 0.05, dome), main, 0.015),
        Part("cone", (0, 0, 0.34 + dome), (0.04, 0.03, 0.06), accent),
        Part("cone", (0, 0, -0.15), (0.05, 0.05, 0.45), accent),
        Part("torus", (0, 0.13, -0.58), (0.13, 0.05, 0), accent, 0, turn("y", 90)),
    ]


BUILDERS: dict[str, Builder] = {
    "bottle": _bottle,
    "mug": _mug,
    "teapot": _teapot,
    "umbrella": _umbrella,
}
