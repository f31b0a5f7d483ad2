"""Declares a setting once: its default, its meaning, and the values that it accepts.

Each subpackage declares the options of its own code as a frozen dataclass of settings; `config`
derives flags, checks and config.json from them. "(paper: ...)" in a help text is DreamFusion's own
value, which the preset of that name sets.
"""

from __future__ import annotations

import dataclasses
from typing import Any

Range = tuple[float, float]
WholeNumbers = tuple[int, ...]  # one or several; told from a range by its default's integers
MAX_STEPS = 10_000_000


def setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    former_name: str | None = None,
) -> Any:
    """Makes a dataclass field that carries its own help and checks.

    Args:
      default: the value where none is given; its type is the setting's.
      help: the meaning, with the unit.
      minimum, maximum: the bounds of a number, of both ends of a range, or of each of several.
      choices: the values that a string may have.
      former_name: an old name that still works for one release.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "former_name": former_name,
    }
    return dataclasses.field(default=default, metadata=metadata)


def is_whole_numbers(field: dataclasses.Field) -> bool:
    """Returns whether a setting is one or several whole numbers."""
    return isinstance(field.default, tuple) and isinstance(field.default[0], int)
