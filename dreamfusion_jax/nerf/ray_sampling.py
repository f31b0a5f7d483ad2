"""Sampling along a ray: bounds, uniform edges, and resampling of a proposal's histogram.

`s` is the distance along a ray. Intervals are given by their edges, [..., S+1], in ascending order;
neighboring intervals share an edge, so they cover all between the first and the last.
Everything here is dense arithmetic over [..., S, S'] instead of searches and gathers: S is a few
dozen, and XLA fuses the comparison with the sum that follows it on every backend.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.cameras import Rays
from dreamfusion_jax.nerf.linalg import dot


def sphere_bounds(rays: Rays, radius: float) -> tuple[jax.Array, jax.Array]:
    """Computes the distances [..., 1] at which each ray enters and leaves the bounding sphere.

    The sphere has its center at the origin. Rays of a camera inside it start at the camera. A ray
    that misses the sphere (or points away from it) gets near = far, intervals of zero length, and
    therefore an opacity of exactly zero.
    """
    towards = -dot(rays.origin, rays.direction)[..., None]
    closest = rays.origin + towards * rays.direction
    half_chord_squared = radius**2 - dot(closest, closest)[..., None]
    hit = half_chord_squared > 0.0
    half_chord = jnp.where(hit, jnp.sqrt(jnp.where(hit, half_chord_squared, 1.0)), 0.0)
    near = jnp.maximum(towards - half_chord, 0.0)
    far = jnp.maximum(towards + half_chord, near)
    return near, far


def uniform_edges(
    near: jax.Array, far: jax.Array, samples: int, shift: jax.Array | None
) -> jax.Array:
    """Returns evenly spaced edges [..., samples+1] from `near` to `far` (each [..., 1]).

    Args:
      samples: number of intervals.
      shift: [..., samples-1] in [-1/2, 1/2], moves the inner edges by so many spacings; None: not.
    """
    fraction = jnp.arange(samples + 1, dtype=jnp.float32)
    if shift is not None:
        fraction = fraction + jnp.pad(shift, [(0, 0)] * (near.ndim - 1) + [(1, 1)])
    return near + (far - near) * (fraction / samples)


def inverse_cdf(edges: jax.Array, probability: jax.Array, u: jax.Array) -> jax.Array:
    """Inverts the piecewise linear CDF of a histogram at `u`.

    A bin that starts at c_j with probability p_j and length d_j adds
    d_j clip((u - c_j) / p_j, 0, 1) to the result. Each term is monotone in u, so sorted u give
    sorted results even after rounding.

    Args:
      edges: [..., P+1] of the histogram.
      probability: [..., P] positive, sum 1.
      u: [..., S] in [0, 1].

    Returns:
      [..., S] distances.
    """
    start = jnp.cumsum(probability, axis=-1) - probability
    part = (u[..., :, None] - start[..., None, :]) / probability[..., None, :]
    length = jnp.diff(edges, axis=-1)[..., None, :]
    s = edges[..., :1] + jnp.sum(length * jnp.clip(part, 0.0, 1.0), axis=-1)
    return jnp.minimum(s, edges[..., -1:])


def resample_edges(
    edges: jax.Array,
    weights: jax.Array,
    samples: int,
    offset: jax.Array | None,
    padding: float = 0.01,
) -> jax.Array:
    """Resamples a proposal: edges [..., samples+1], dense where its `weights` are large.

    Interval centers are drawn from the histogram: one from each of `samples` strata of its CDF.
    Edges lie midway between centers; the outer two mirror the inner ones, so that the empty space
    before and behind an object is no part of its first and last interval (mip-NeRF 360, Barron et
    al. 2022, appendix).

    Args:
      edges: [..., P+1] of the proposal.
      weights: [..., P] its compositing weights; their gradient is stopped.
      samples: number of new intervals, at least 2.
      offset: [..., samples] in [0, 1], position of each center in its stratum; None: the middle.
      padding: added to each weight, so that no part of a ray goes unsampled (mip-NeRF, eq. 18).
    """
    padded = jax.lax.stop_gradient(weights) + padding
    probability = padded / jnp.sum(padded, axis=-1, keepdims=True)
    stratum = jnp.arange(samples, dtype=jnp.float32)
    u = (stratum + (0.5 if offset is None else offset)) / samples
    u = jnp.broadcast_to(u, (*weights.shape[:-1], samples))
    center = inverse_cdf(jax.lax.stop_gradient(edges), probability, u)
    middle = 0.5 * (center[..., 1:] + center[..., :-1])
    first = jnp.maximum(2.0 * center[..., :1] - middle[..., :1], edges[..., :1])
    last = jnp.minimum(2.0 * center[..., -1:] - middle[..., -1:], edges[..., -1:])
    return jax.lax.stop_gradient(jnp.concatenate([first, middle, last], axis=-1))
