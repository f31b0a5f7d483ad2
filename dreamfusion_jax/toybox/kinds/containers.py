"""Things to hold: bottle, mug, teapot, umbrella."""

from __future__ import annotations

from dreamfusion_jax.toybox.kinds.materials import CREAM, Builder, Color, Uniform, rod, shade
from dreamfusion_jax.toybox.shapes import Part, turn

_COFFEE: Color = (0.25, 0.14, 0.08)


def _bottle(u: Uniform, main: Color, accent: Color) -> list[Part]:
    body, width, neck = u(0.32, 0.38), u(0.19, 0.24), u(0.13, 0.18)
    ground = -0.74
    shoulder = ground + 0.03 + 2 * body
    mouth = shoulder + 0.2 + 2 * neck
    return [
        Part("cone", (0, 0, ground + body), (width, width, body), main, 0.03),
        Part("cone", (0, 0, shoulder + 0.1), (width, 0.055, 0.1), main, 0.03),
        rod((0, 0, shoulder + 0.1), (0, 0, mouth), 0.075, main),
        Part("cone", (0, 0, mouth), (0.095, 0.095, 0.07), accent, 0.01),
        Part("cone", (0, 0, mouth - 0.14), (0.09, 0.09, 0.012), main, 0.01),
        Part(
            "cone", (0, 0, ground + body), (width + 0.012, width + 0.012, body * 0.5), CREAM, 0.03
        ),
        Part(
            "cone", (0, 0, ground + body), (width + 0.016, width + 0.016, body * 0.14), main, 0.03
        ),
    ]


def _mug(u: Uniform, main: Color, accent: Color) -> list[Part]:
    width, height, handle = u(0.34, 0.40), u(0.38, 0.44), u(0.22, 0.26)
    wall = 0.035
    return [
        Part("tube", (0, 0, 0), (width, wall, height), main, 0.015),
        Part("cone", (0, 0, -0.1), (width, width, height - 0.12), main),
        Part("cone", (0, 0, height * 0.55), (width - wall, width - wall, 0.02), _COFFEE),
        Part("torus", (0, -width - 0.13, 0), (handle, 0.06, 0), accent, 0, turn("y", 90)),
    ]


def _teapot(u: Uniform, main: Color, accent: Color) -> list[Part]:
    body, height = u(0.38, 0.43), u(0.31, 0.36)
    return [
        Part("ellipsoid", (0, 0, -0.05), (body, body, height), main),
        rod((0, body - 0.12, -0.16), (0, body + 0.2, 0.08), 0.12, accent, 0.065),
        rod((0, body + 0.18, 0.05), (0, body + 0.3, 0.3), 0.065, accent, 0.045),
        Part("torus", (0, -body - 0.08, 0.0), (0.2, 0.05, 0), shade(main, 0.9), 0, turn("y", 90)),
        Part("cone", (0, 0, height - 0.07), (0.23, 0.15, 0.035), shade(main, 0.85), 0.015),
        Part("ellipsoid", (0, 0, height + 0.05), (0.07, 0.07, 0.07), shade(main, 0.85)),
        Part("cone", (0, 0, -height - 0.03), (0.24, 0.21, 0.03), shade(main, 0.85), 0.01),
    ]


def _umbrella(u: Uniform, main: Color, accent: Color) -> list[Part]:
    span, height, pole = u(0.64, 0.72), u(0.30, 0.38), u(0.026, 0.034)
    rim = 0.2
    bottom, hook = -0.66, u(0.09, 0.12)
    joints = [
        (0.0, 0.0, bottom),
        (0.0, 0.3 * hook, bottom - 0.8 * hook),
        (0.0, hook, bottom - 1.15 * hook),
        (0.0, 1.7 * hook, bottom - 0.8 * hook),
        (0.0, 2.0 * hook, bottom),
    ]
    bends = zip(joints, joints[1:], strict=False)
    return [
        Part("dome", (0, 0, rim), (span, span, height), main),
        Part("cone", (0, 0, rim - 0.005), (span * 0.93, span * 0.93, 0.01), shade(main, 0.6)),
        # Ribs: flat domes that stand out of the canopy by a little.
        *[
            Part(
                "dome",
                (0, 0, rim),
                (span + 0.01, 0.022, height + 0.01),
                shade(main, 0.75),
                0.0,
                rib,
            )
            for rib in (turn("z", angle) for angle in (0, 45, 90, 135))
        ],
        Part("torus", (0, 0, rim), (span * 0.985, 0.016, 0), shade(main, 0.75)),
        rod((0, 0, rim + height - 0.02), (0, 0, rim + height + 0.11), 0.03, accent, 0.01),
        rod((0, 0, bottom), (0, 0, rim), pole, accent),
        *[rod(start, end, 1.3 * pole, accent)._replace(rounding=0.012) for start, end in bends],
    ]


BUILDERS: dict[str, Builder] = {
    "bottle": _bottle,
    "mug": _mug,
    "teapot": _teapot,
    "umbrella": _umbrella,
}
