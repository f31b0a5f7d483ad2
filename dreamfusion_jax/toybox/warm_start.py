"""Starts a network from the weights of a similar one, as far as their shapes allow."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = Any
_OUTER = re.compile(r"^down_blocks_(\d+)$")


def transplant(params: Params, donor: Params, rename: Callable[[str], str] = str) -> Params:
    """Copies every array of `donor` that has the name and the shape of one of `params`.

    Of an embedding that grew, the rows that were there are copied.

    Args:
      rename: a name at the top level of `params` -> that of the donor.
    """
    given = flatten_dict(donor)

    def choose(path: tuple[str, ...], leaf: Any) -> Any:
        found = given.get((rename(path[0]), *path[1:]))
        if found is None:
            return leaf
        if found.shape == leaf.shape:
            return jnp.asarray(found, leaf.dtype)
        rows = len(found) if found.ndim else 0
        if path[-1] == "embedding" and rows < len(leaf) and found.shape[1:] == leaf.shape[1:]:
            return leaf.at[:rows].set(found)
        return leaf

    return unflatten_dict({path: choose(path, leaf) for path, leaf in flatten_dict(params).items()})


def inner_blocks(levels: int) -> Callable[[str], str]:
    """Names the blocks of a U-Net as those of one with so many outer levels less.

    Blocks on the way up are counted from the innermost, and need no other name.
    """

    def rename(name: str) -> str:
        outer = _OUTER.match(name)
        return name if outer is None else f"down_blocks_{int(outer[1]) - levels}"

    return rename
