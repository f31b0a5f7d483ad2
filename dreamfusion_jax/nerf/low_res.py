"""Packs an image of half the side into the arrays of the full one, at run time.

Shapes are fixed when a program is compiled, but the number of rays traced need not be: the rays of
the small image take the first pixels of the full one, and the other pixels stay inactive. One
compiled step thus serves both sizes.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.runtime.device import platform


def half(size: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of the small image that belongs to a full one of `size`."""
    return -(-size[0] // 2), -(-size[1] // 2)


def inactive_pixels(size: tuple[int, int]) -> jax.Array:
    """Returns [H, W] bool, true for the pixels that the packed small image does not use."""
    return (jnp.arange(math.prod(size)) >= math.prod(half(size))).reshape(size)


def pack(small: Any, size: tuple[int, int]) -> Any:
    """Packs arrays [h, w, ...] of the small image into arrays [H, W, ...] of the full size.

    The values take the first pixels in row-major order. The rest is padding.
    """

    def pack_array(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, *x.shape[2:])
        missing = math.prod(size) - len(flat)
        padded = jnp.pad(flat, [(0, missing)] + [(0, 0)] * (flat.ndim - 1), mode="edge")
        return padded.reshape(*size, *x.shape[2:])

    return jax.tree.map(pack_array, small)


def enlarge(packed: Any, size: tuple[int, int]) -> Any:
    """Unpacks the small image's arrays from `pack` and resizes them bilinearly to `size`."""

    def resize(x: jax.Array) -> jax.Array:
        height, width = half(size)
        small = x.reshape(-1, *x.shape[2:])[: height * width].reshape(height, width, *x.shape[2:])
        if platform() == "gpu" and size == (2 * height, 2 * width):
            return _doubled(_doubled(small, 0), 1)
        return jax.image.resize(small, x.shape, "linear")

    return jax.tree.map(resize, packed)


def _doubled(x: jax.Array, axis: int) -> jax.Array:
    """Doubles an axis bilinearly: each value, and a quarter of the way to either neighbor.

    jax.image.resize multiplies by a matrix, whose derivative XLA's default tiling for GPUs refuses.
    """
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, -1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, None, axis=axis), last], axis)
    pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def tree_where(condition: jax.Array, first: Any, second: Any) -> Any:
    """Selects every array of `first` where `condition` [] holds, and else of `second`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
