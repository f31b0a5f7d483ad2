"""Checks of arguments that are no settings: each raises a SettingError that names the argument."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamfusion_jax.runtime.errors import SettingError


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Checks a whole number within bounds."""
    if not isinstance(value, int | np.integer) or not least <= value <= most:
        raise SettingError(
            f"{name} must be a whole number from {least} to {most}, not {value!r:.80}."
        )


def check_number(name: str, value: Any, above: float = -math.inf, below: float = math.inf) -> None:
    """Checks a finite number that is greater and less than these."""
    if not _is_number(value) or not above < value < below:
        limits = f" between {above:g} and {below:g}" if math.isfinite(below) else ""
        limits = limits or (f" above {above:g}" if math.isfinite(above) else "")
        raise SettingError(f"{name} must be a finite number{limits}, not {value!r:.80}.")


def check_color(name: str, value: Any) -> None:
    """Checks red, green and blue."""
    parts = [] if isinstance(value, str) or not hasattr(value, "__len__") else list(value)
    if len(parts) != 3 or not all(_is_number(part) and 0.0 <= part <= 1.0 for part in parts):
        raise SettingError(
            f"{name} must be red, green and blue from 0 to 1, as in (1, 1, 1) for white, not"
            f" {value!r:.80}."
        )


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number; JAX's and numpy's count, too."""
    is_number = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    return is_number and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Checks a value that must be one of some."""
    if value not in choices:
        raise SettingError(f"{name} must be one of {', '.join(choices)}, not {value!r:.80}.")
