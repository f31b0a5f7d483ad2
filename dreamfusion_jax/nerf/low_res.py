"""A picture of half the side in a whole one's place, chosen while the program runs.

Shapes cannot change while a program runs, but how many rays are followed can: the rays of the small
picture take the first places of the whole one's, and the other places stay idle. So one compiled
step serves both sizes.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def half(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the small picture of a whole one of `size`."""
    return -(-size[0] // 2), -(-size[1] // 2)


def inactive_pixels(size: tuple[int, int]) -> jax.Array:
    """[H, W] bool: the places that the small picture leaves empty."""
    return (jnp.arange(math.prod(size)) >= math.prod(half(size))).reshape(size)


def pack(small: Any, size: tuple[int, int]) -> Any:
    """Arrays [h, w, ...] of the small picture in those of the whole one, [H, W, ...].

    The first places in order; what the others hold is of no account.
    """

    def put(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, *x.shape[2:])
        missing = math.prod(size) - len(flat)
        padded = jnp.pad(flat, [(0, missing)] + [(0, 0)] * (flat.ndim - 1), mode="edge")
        return padded.reshape(*size, *x.shape[2:])

    return jax.tree.map(put, small)


def enlarge(placed: Any, size: tuple[int, int]) -> Any:
    """The small picture's arrays, placed by `pack`, at the whole one's size: bilinear."""

    def resize(x: jax.Array) -> jax.Array:
        height, width = half(size)
        small = x.reshape(-1, *x.shape[2:])[: height * width].reshape(height, width, *x.shape[2:])
        return jax.image.resize(small, x.shape, "linear")

    return jax.tree.map(resize, placed)
