"""The kinds of the toybox: what makes a chair a chair, with randomized proportions.

Each builder returns the parts of one random object in a box of about [-0.75, 0.75]^3, z up, its
front towards +x, its left towards +y. `main` is the color that the caption names, `accent` that of
the part listed in captions.ACCENT_PARTS. A kind's sequence of primitives never varies.
"""

from __future__ import annotations

import numpy as np

from dreamfusion_jax.toybox.captions import COLORS, GRAY, Subject
from dreamfusion_jax.toybox.kinds import buildings, containers, figures, furniture, vehicles
from dreamfusion_jax.toybox.kinds.materials import CREAM, DARK, ORANGE, STEEL, WOOD, Builder, Color
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


def build(rng: np.random.Generator, subject: Subject) -> list[Part]:
    """The parts of one random object, slightly scaled at random about the origin.

    A subject without a color is gray all over, details included: a textureless render.
    """
    main = COLORS[subject.color] if subject.color else GRAY
    accent = COLORS[subject.accent] if subject.accent else _DEFAULT_ACCENT[subject.kind]
    parts = _BUILDERS[subject.kind](rng.uniform, _vary(rng, main), accent or _vary(rng, main))
    if subject.color is None:
        parts = [part._replace(color=GRAY) for part in parts]
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
