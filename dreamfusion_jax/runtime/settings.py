"""Declares a setting once: its default, what it means, and the values that it accepts.

Every room declares the options of its own code as a frozen dataclass of settings; their flags,
checks and places in config.json follow from that (config/). "(paper: ...)" in a help text is
DreamFusion's own value, which the preset of that name sets.
"""

from __future__ import annotations

import dataclasses
from typing import Any

Range = tuple[float, float]
MAX_STEPS = 10_000_000


def setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    former_name: str | None = None,
) -> Any:
    """Makes a dataclass field that knows how to explain and check itself.

    Args:
      default: its value where none is given; its type is the setting's.
      help: what it means, with its unit.
      minimum, maximum: the bounds of a number, or of both ends of a range.
      choices: the values that a text may have.
      former_name: a name that still works, for a release after it was renamed.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "former_name": former_name,
    }
    return dataclasses.field(default=default, metadata=metadata)
