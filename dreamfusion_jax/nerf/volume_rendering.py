"""Volume rendering: densities along a ray to compositing weights, and weights to an image.

With density tau_i on an interval of length d_i (Max 1995; NeRF, Mildenhall et al. 2020, eq. 3):

    weights_i = exp(-sum_{j<i} tau_j d_j) (1 - exp(-tau_i d_i)),    opacity = sum_i weights_i
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def compositing_weights(density: jax.Array, edges: jax.Array) -> jax.Array:
    """Computes the weights [..., S] of the intervals between `edges` [..., S+1].

    The transmittance is summed as a logarithm: a product of (1 - opacity_i) would have no finite
    gradient behind an opaque interval. The optical depth before an interval is summed without the
    interval itself: as a difference of two sums it would lose its digits to a dense interval.

    Args:
      density: [..., S] in the intervals.
      edges: [..., S+1] distances.
    """
    optical_depth = density * jnp.diff(edges, axis=-1)
    before = jnp.cumsum(optical_depth[..., :-1], axis=-1)
    before = jnp.pad(before, [(0, 0)] * (before.ndim - 1) + [(1, 0)])
    return jnp.exp(-before) * -jnp.expm1(-optical_depth)


def composite(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sums `values` [..., S, C] over the samples of a ray by `weights` [..., S] -> [..., C]."""
    return jnp.sum(weights[..., None] * values, axis=-2)


def over(color: jax.Array, opacity: jax.Array, background: jax.Array) -> jax.Array:
    """Composites premultiplied `color` [..., 3] of `opacity` [...] over `background` [..., 3]."""
    return color + (1.0 - opacity)[..., None] * background


def expected_depth(weights: jax.Array, edges: jax.Array) -> jax.Array:
    """Returns the mean distance [...] at which a ray is absorbed; 0 if it meets nothing."""
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    opacity = jnp.sum(weights, axis=-1)
    return jnp.sum(weights * middle, axis=-1) / jnp.maximum(opacity, 1e-6)
