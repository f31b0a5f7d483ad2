"""Reads a diffusers or transformers config dictionary into a module's attributes.

An option that the module does not have is refused by name: a network that quietly ignored one would
load, run, and draw something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from dreamfusion_jax.runtime.errors import PriorError

# No network has a number as large, nor as many blocks or layers: a file that says so would only
# have us build for hours.
LARGEST = 2**20
MAX_BLOCKS = 8
MOST = {
    "layers_per_block": 8,
    "transformer_layers_per_block": 16,
    "num_hidden_layers": 64,
    "downsample_padding": 1,
    "freq_shift": 1,
}


def module_defaults(module_class: Any) -> dict[str, Any]:
    """The attributes that a config may set, each with its default."""
    fields = dataclasses.fields(module_class)
    return {f.name: f.default for f in fields if f.name not in ("dtype", "parent", "name")}


def module_options(
    class_name: str,
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    fixed: Mapping[str, Any],
    inert: Collection[str] = (),
    per_block: Collection[str] = (),
) -> dict[str, Any]:
    """The entries of `config` that set attributes, lists turned into tuples (modules are hashable).

    Args:
      class_name: names the network in messages.
      config: the parsed config.json. Keys that start with an underscore are book-keeping.
      known: the attributes that a config may set, with the defaults that tell their kinds.
      fixed: options with the one value that is supported, which is also their default.
      inert: options that do not change what the network computes at inference.
      per_block: attributes that may have one value for all blocks, or a list of one for each.
    """
    options = {}
    for key, value in config.items():
        value = _hashable(value)
        if key in known:
            require_kind(class_name, key, value, known[key], key in per_block)
            options[key] = value
        elif key in fixed:
            if value != _hashable(fixed[key]):
                raise PriorError(
                    f"{class_name} config: {key}={value!r:.200} is not supported, "
                    f"only {key}={fixed[key]!r} is."
                )
        elif not (key.startswith("_") or key in inert):
            raise PriorError(
                f"{class_name} config: the option {key}={value!r:.200} is not supported."
            )
    return options


def require_kind(
    class_name: str, key: str, value: Any, default: Any, per_block: bool = False
) -> None:
    """Refuses a value of another kind than its default, or beyond all bounds.

    Where the default is a tuple, so must the value be; where it is `per_block`, it may be one.
    """
    if default is None:
        return
    one, listed = (default[0], True) if isinstance(default, tuple) else (default, False)
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple) != listed and not per_block:
        kind = f"list of {type(one).__name__}" if listed else type(one).__name__
    elif not all(_is_like(v, one) for v in values):
        kind = type(one).__name__
    elif not 1 <= len(values) <= MAX_BLOCKS:
        kind = f"one for each of up to {MAX_BLOCKS} blocks"
    elif not all(0 <= v <= MOST.get(key, LARGEST) for v in values if type(v) is not str):
        kind = f"0 to {MOST.get(key, LARGEST)}"
    else:
        return
    raise PriorError(f"{class_name} config: {key}={value!r:.200} is not supported, only {kind} is.")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def require_members(class_name: str, key: str, values: Collection[str], allowed: set[str]) -> None:
    """Refuses a list of block types with one that is not implemented."""
    for value in values:
        if value not in allowed:
            raise PriorError(
                f"{class_name} config: {value!r:.200} in {key} is not supported, "
                f"only {', '.join(sorted(allowed))} are."
            )


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value
