"""Metrics as curves: from numbers to the paths and labels of a small SVG."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 320, 110
_MARGIN = 4
# A curve that spans more decades has a logarithmic axis, if all of its values are positive.
_DECADES = 1.5
_WINDOWS = 12  # of the running mean, in the length of a curve
_NOTES = {
    "residual_rms": "size of the change that guidance asks for",
    "gradient_norm": "of all parameters together",
    "opacity_mean": "share of the image that the object covers",
    "objective_loss": "of what the objective trains on the renders",
}
_REGULARIZER = "regularizer/"


class Chart(NamedTuple):
    """One curve in a box of `WIDTH` x `HEIGHT`.

    Attributes:
      name, note: of the metric.
      dots: an SVG path through all values, broken where one is missing.
      line: the path of their running mean.
      low, high: the values at the lower and the upper edge.
      first, last: the steps at the left and the right edge.
      logarithmic: whether the vertical axis is logarithmic.
      description: the curve in words, for screen readers.
    """

    name: str
    note: str
    dots: str
    line: str
    low: str
    high: str
    first: str
    last: str
    logarithmic: bool
    description: str


def charts(lines: list[dict[str, float]]) -> list[Chart]:
    """Makes a chart of each notable metric that has at least two values, not all 0."""
    regularizers = sorted(
        {name for line in lines for name in line if name.startswith(_REGULARIZER)}
    )
    steps = np.array([line["step"] for line in lines], float)
    result = []
    for name in (*_NOTES, *regularizers):
        values = np.array([line.get(name, math.nan) for line in lines], float)
        known = values[np.isfinite(values)]
        if len(known) > 1 and known.any():
            result.append(chart(name, steps, values))
    return result


def chart(name: str, steps: np.ndarray, values: np.ndarray) -> Chart:
    """Makes a curve of values [N], NaN where missing, over rising steps [N]."""
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    logarithmic = low > 0.0 and math.log10(high) - math.log10(low) > _DECADES
    scaled = np.log10(values) if logarithmic else values
    first, last = f"{steps[0]:,.0f}", f"{steps[-1]:,.0f}"
    title = name.removeprefix(_REGULARIZER)
    note = "regularizer, before its weight" if title != name else _NOTES.get(name, "")
    description = (
        f"{title}: from {short(known[0])} to {short(known[-1])} over steps {first} to {last}"
    )
    x = _scale(steps, steps[0], steps[-1], WIDTH)
    y = HEIGHT - _scale(scaled, np.nanmin(scaled), np.nanmax(scaled), HEIGHT)
    smooth = HEIGHT - _scale(running_mean(scaled), np.nanmin(scaled), np.nanmax(scaled), HEIGHT)
    return Chart(
        *(title, note, path(x, y), path(x, smooth), short(low), short(high), first, last),
        logarithmic=logarithmic,
        description=description,
    )


def path(x: np.ndarray, y: np.ndarray) -> str:
    """Joins points [N] by straight lines, with a gap where y is NaN, as an SVG path."""
    commands, pen_down = [], False
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            commands.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}")
        pen_down = math.isfinite(b)
    return "".join(commands)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Averages the known values in a window around each of [N]; NaN where the value is missing."""
    half = len(values) // (2 * _WINDOWS)
    known = np.isfinite(values)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0.0), window, "full")
    count = np.convolve(known, window, "full")
    inside = slice(half, half + len(values))
    return np.where(known, total[inside] / np.maximum(count[inside], 1.0), math.nan)


def short(value: float) -> str:
    """Formats a number in three digits."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _scale(values: np.ndarray, low: float, high: float, length: float) -> np.ndarray:
    """Scales values in low..high to positions within the margins of a box of this length."""
    share = (values - low) / (high - low) if high > low else 0.5 + 0.0 * values
    return _MARGIN + share * (length - 2 * _MARGIN)
