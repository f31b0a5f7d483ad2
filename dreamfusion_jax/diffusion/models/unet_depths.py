"""How many transformers each layer of a U-Net's blocks has, as a config lists them.

One number for all, one for each block, or (in distilled networks such as SSD-1B) a list of one for
each of a block's layers; those on the way up mirror those down, or have a list of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamfusion_jax.diffusion.loading.options import require_kind
from dreamfusion_jax.runtime.errors import PriorError

NAME = "UNet2DConditionModel"
DOWN, UP = "transformer_layers_per_block", "reverse_transformer_layers_per_block"

Depths = tuple[tuple[int, ...], ...]  # of each block, of each of its layers


def down_depths(given: Any, layers: Sequence[int]) -> Depths:
    """Returns the depths on the way down, of blocks of `layers` layers."""
    return _by_layer(DOWN, given, layers)


def up_depths(given: Any, backward: Any, layers: Sequence[int]) -> Depths:
    """Returns the depths on the way up, whose blocks have one layer more, the lowest first.

    Args:
      given: the depths on the way down.
      backward: those on the way up; None: `given`, mirrored.
    """
    more = [count + 1 for count in reversed(layers)]
    if backward is not None:
        return _by_layer(UP, backward, more)
    if not isinstance(given, tuple):
        return _by_layer(DOWN, given, more)
    if any(isinstance(entry, tuple) for entry in given):
        raise PriorError(
            f"{NAME} config: {DOWN}={given!r:.200} lists a block's layers, which needs a {UP}."
        )
    return _by_layer(DOWN, given[::-1], more)


def _by_layer(key: str, given: Any, layers: Sequence[int]) -> Depths:
    entries = given if isinstance(given, tuple) else (given,) * len(layers)
    if len(entries) != len(layers):
        raise PriorError(
            f"{NAME} config: {key}={given!r:.200} must have as many entries as block_out_channels."
        )
    return tuple(_of_block(key, entry, count) for entry, count in zip(entries, layers, strict=True))


def _of_block(key: str, entry: Any, count: int) -> tuple[int, ...]:
    if not isinstance(entry, tuple):
        require_kind(NAME, key, entry, 1)
        return (entry,) * count
    require_kind(NAME, key, entry, (1,))
    if len(entry) != count:
        raise PriorError(f"{NAME} config: {key} has {entry!r:.200} for a block of {count} layers.")
    return entry
