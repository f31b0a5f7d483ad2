"""Operations on vectors [..., 3]."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the dot product [...] of `a` and `b`, each [..., 3].

    Written out: XLA on CPU may hand a sum over an axis to a library, which keeps its operand in
    memory and is slow where the axis is short.
    """
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def safe_normalize(vector: jax.Array, floor: float = 1e-6) -> jax.Array:
    """Scales `vector` [..., 3] to unit length; below `floor` it fades to 0, gradients finite."""
    squared = dot(vector, vector)[..., None]
    return vector * jax.lax.rsqrt(jnp.maximum(squared, floor**2))
