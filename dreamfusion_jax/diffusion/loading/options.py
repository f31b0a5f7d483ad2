"""Reads a diffusers or transformers config dictionary into a module's attributes.

An option that the module does not have raises an error: a network that ignored one would load, run,
and draw something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from dreamfusion_jax.runtime.errors import PriorError

# Beyond any real network: a file with larger numbers would take hours to build.
MAX_NUMBER = 2**20
MAX_BLOCKS = 8
MAX_OF_KEY = {
    "layers_per_block": 8,
    "transformer_layers_per_block": 16,
    "reverse_transformer_layers_per_block": 16,
    "num_hidden_layers": 64,
    "downsample_padding": 1,
    "freq_shift": 1,
}


def module_defaults(module_class: Any) -> dict[str, Any]:
    """Returns the attributes that a config may set, with their defaults."""
    fields = dataclasses.fields(module_class)
    return {f.name: f.default for f in fields if f.name not in ("dtype", "parent", "name")}


def module_options(
    class_name: str,
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    required: Mapping[str, Any],
    ignored: Collection[str] = (),
    per_block: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the entries of `config` that set attributes, with tuples for lists (hashable).

    Args:
      class_name: names the network in messages.
      config: the parsed config.json. Keys that start with an underscore are book-keeping.
      known: the attributes that a config may set, with defaults of their types.
      required: options with the only value that is supported, which is also their default.
      ignored: options that do not change what the network computes at inference.
      per_block: attributes that may have one value for all blocks, or a list of one for each.

    Raises:
      PriorError: an option, or its value, is not supported.
    """
    options = {}
    for key, value in config.items():
        value = _hashable(value)
        if key in known:
            require_kind(class_name, key, value, known[key], key in per_block)
            options[key] = value
        elif key in required:
            if value != _hashable(required[key]):
                raise PriorError(
                    f"{class_name} config: {key}={value!r:.200} is not supported, "
                    f"only {key}={required[key]!r} is."
                )
        elif not (key.startswith("_") or key in ignored):
            raise PriorError(
                f"{class_name} config: the option {key}={value!r:.200} is not supported."
            )
    return options


def require_kind(
    class_name: str, key: str, value: Any, default: Any, per_block: bool = False
) -> None:
    """Raises PriorError for a value of another type than its default, or out of bounds.

    Where the default is a tuple, the value must be one; where it is `per_block`, it may be one.
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
    elif not all(0 <= v <= MAX_OF_KEY.get(key, MAX_NUMBER) for v in values if type(v) is not str):
        kind = f"0 to {MAX_OF_KEY.get(key, MAX_NUMBER)}"
    else:
        return
    raise PriorError(f"{class_name} config: {key}={value!r:.200} is not supported, only {kind} is.")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def require_members(class_name: str, key: str, values: Collection[str], allowed: set[str]) -> None:
    """Raises PriorError where one of a list of block types is not implemented."""
    for value in values:
        if value not in allowed:
            raise PriorError(
                f"{class_name} config: {value!r:.200} in {key} is not supported, "
                f"only {', '.join(sorted(allowed))} are."
            )


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value
