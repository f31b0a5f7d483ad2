"""Reads a diffusers or transformers config dictionary into a module's attributes.

An option that the module does not have is refused by name: a network that quietly ignored one would
load, run, and draw something else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dreamfusion_jax.errors import PriorError


def module_options(
    class_name: str,
    config: Mapping[str, Any],
    known: Collection[str],
    fixed: Mapping[str, Any],
    inert: Collection[str] = (),
) -> dict[str, Any]:
    """The entries of `config` that set attributes, lists turned into tuples (modules are hashable).

    Args:
      class_name: names the network in messages.
      config: the parsed config.json. Keys that start with an underscore are book-keeping.
      known: the attributes that a config may set.
      fixed: options with the one value that is supported, which is also their default.
      inert: options that do not change what the network computes at inference.
    """
    options = {}
    for key, value in config.items():
        value = _hashable(value)
        if key in known:
            options[key] = value
        elif key in fixed:
            if value != _hashable(fixed[key]):
                raise PriorError(
                    f"{class_name} config: {key}={value!r} is not supported, "
                    f"only {key}={fixed[key]!r} is."
                )
        elif not (key.startswith("_") or key in inert):
            raise PriorError(f"{class_name} config: the option {key}={value!r} is not supported.")
    return options


def require_type(class_name: str, options: Mapping[str, Any], key: str, *types: type) -> None:
    """Refuses an option that is set but is none of `types`."""
    if key in options and not isinstance(options[key], types):
        names = " or ".join(t.__name__ for t in types)
        raise PriorError(
            f"{class_name} config: {key}={options[key]!r} is not supported, only {names} is."
        )


def require_members(class_name: str, key: str, values: Collection[str], allowed: set[str]) -> None:
    """Refuses a list of block types with one that is not implemented."""
    for value in values:
        if value not in allowed:
            raise PriorError(
                f"{class_name} config: {value!r} in {key} is not supported, "
                f"only {', '.join(sorted(allowed))} are."
            )


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value
