"""The kinds of the toybox: what makes a chair a chair, with randomized proportions.

Each builder returns the parts of one random object in a box of about [-0.75, 0.75]^3, z up, its
front towards +x, its left towards +y. `main` is the color that the caption names, `accent` that of
the part listed in captions.ACCENT_PARTS. A kind's sequence of primitives never varies.
"""

from __future__ import annotations

import numpy as np

from dreamfusion_jax.toybox.captions import COLORS, GRAY, Subject
from dreamfusion_jax.toybox.kinds import buildings, containers, figures, furniture, vehicles
from dreamfusion_jax.toybox.kinds.materials import (
    CREAM,
    DARK,
    ORANGE,
    STEEL,
    WOOD,
    Builder,
    Color,
    shade,
)
from dreamfusion_jax.toybox.shapes import Part

_BUILDERS: dict[str, Builder] = {
    **figures.BUILDERS,
    **buildings.BUILDERS,
    **furniture.BUILDERS,
    **vehicles.BUILDERS,
    **containers.BUILDERS,
}

# The accent's color where the caption names none; None is the main color.
_DEFAULT_ACCENT: dict[str, Color | None] = {
    "airplane": None,
    "bed": CREAM,
    "boat": CREAM,
    "bottle": WOOD,
    "cactus": (0.72, 0.40, 0.25),
    "candle": STEEL,
    "car": DARK,
    "castle": STEEL,
    "chair": None,
    "duck": ORANGE,
    "fish": None,
    "house": (0.50, 0.25, 0.18),
    "lamp": STEEL,
    "mug": None,
    "mushroom": CREAM,
    "rabbit": None,
    "robot": STEEL,
    "rocket": STEEL,
    "snowman": DARK,
    "sofa": None,
    "table": None,
    "teapot": None,
    "tree": WOOD,
    "truck": None,
    "umbrella": WOOD,
    "windmill": CREAM,
}


_WOODS: tuple[Color, ...] = ((0.68, 0.46, 0.25), (0.58, 0.36, 0.18), (0.76, 0.57, 0.35))


def build(rng: np.random.Generator, subject: Subject) -> list[Part]:
    """Returns the parts of one random object, slightly scaled at random about the origin.

    A subject with neither color nor material is gray all over, details included: a textureless
    render.
    """
    main = COLORS[subject.color] if subject.color else GRAY
    if subject.material == "wooden":
        main = _WOODS[int(rng.integers(len(_WOODS)))]
    main = _vary(rng, main)
    accent = COLORS[subject.accent] if subject.accent else _DEFAULT_ACCENT[subject.kind]
    parts = _BUILDERS[subject.kind](rng.uniform, main, accent or main)
    if subject.material:
        pattern = _stripes(rng, subject, main)
        parts = [p._replace(stripes=pattern) if p.color == main else p for p in parts]
    elif subject.color is None:
        parts = [part._replace(color=GRAY) for part in parts]
    scale = rng.uniform(0.94, 1.06)
    return [_scale(part, scale) for part in parts]


def _stripes(
    rng: np.random.Generator, subject: Subject, main: Color
) -> tuple[float, float, float, float, float]:
    """Returns a `Part.stripes`: bands of white (on white, of gray), or the grain of wood."""
    if subject.material == "wooden":
        red, green, blue = shade(main, 0.72)
        return red, green, blue, rng.uniform(7.0, 10.0), 1.0
    red, green, blue = GRAY if subject.color == "white" else COLORS["white"]
    return red, green, blue, rng.uniform(3.5, 5.0), 0.0


def _vary(rng: np.random.Generator, color: Color) -> Color:
    return shade(color, rng.uniform(0.94, 1.04))


def _scale(part: Part, scale: float) -> Part:
    (x, y, z), (a, b, c) = part.center, part.size
    return part._replace(
        center=(scale * x, scale * y, scale * z),
        size=(scale * a, scale * b, scale * c),
        rounding=scale * part.rounding,
    )
