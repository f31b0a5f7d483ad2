"""Starts a network from the weights of a similar one, as far as their shapes allow."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = Any
_BLOCK = re.compile(r"^(down|up)_blocks_(\d+)$")


def transplant(params: Params, donor: Params, rename: Callable[[str], str] = str) -> Params:
    """Copies every array of `donor` that has the name of one of `params` and fits into it.

    Where an array has more channels than the donor's, the donor's channels are the first. They do
    not listen to the inputs that are new; outputs and rows of embeddings that are new stay as they
    were in `params`. What the donor lacks passes on what it is given: residual blocks add nothing,
    samplers average or repeat pixels.

    Args:
      rename: each part of a name in `params` -> that of the donor.
    """
    given = flatten_dict(donor)

    def choose(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        found = given.get(tuple(map(rename, path)))
        if found is None:
            return _passing(path, leaf)
        # The autoencoder's quant_conv returns means and log variances, each of as many channels.
        halves = 2 if path[0] == "quant_conv" else 1
        pairs = zip(jnp.split(leaf, halves, -1), jnp.split(found, halves, -1), strict=True)
        return jnp.concatenate([_copy_into(*pair, path[-1] == "kernel") for pair in pairs], -1)

    return unflatten_dict({path: choose(path, leaf) for path, leaf in flatten_dict(params).items()})


def _passing(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
    if path[-2:] == ("conv2", "kernel"):
        return jnp.zeros_like(leaf)
    if path[-2:] != ("conv", "kernel") or len(path) < 3 or leaf.shape[2] != leaf.shape[3]:
        return leaf
    channels = jnp.eye(leaf.shape[2], dtype=leaf.dtype)
    if path[-3].startswith("downsamplers"):  # of the autoencoder, which pads the far edges alone
        return jnp.zeros_like(leaf).at[:2, :2].set(channels / 4)
    return jnp.zeros_like(leaf).at[1, 1].set(channels)


def _copy_into(leaf: jax.Array, found: Any, is_kernel: bool) -> jax.Array:
    sizes = found.shape
    fits = len(sizes) == leaf.ndim and sizes[:-2] == leaf.shape[:-2]
    if not fits or any(a > b for a, b in zip(sizes, leaf.shape, strict=True)):
        return leaf
    leaf = jnp.asarray(leaf)
    if is_kernel:
        leaf = leaf.at[..., sizes[-2] :, : sizes[-1]].set(0.0)
    corner = tuple(slice(size) for size in sizes)
    return leaf.at[corner].set(jnp.asarray(found, leaf.dtype))


def inner_blocks(levels: int, donor_levels: int) -> Callable[[str], str]:
    """Names the blocks of a network as those of one with so many outer levels less.

    Blocks on the way down are counted from the outermost, those on the way up from the innermost.
    Blocks of the new levels get names that the donor has not.

    Args:
      levels: how many the donor lacks.
      donor_levels: how many it has.
    """

    def rename(name: str) -> str:
        block = _BLOCK.match(name)
        if block is None:
            return name
        number = int(block[2]) - (levels if block[1] == "down" else 0)
        return f"{block[1]}_blocks_{number if 0 <= number < donor_levels else 'new'}"

    return rename
