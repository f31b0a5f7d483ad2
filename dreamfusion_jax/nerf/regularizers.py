"""Regularizers of a scene: each a value [...] per ray, unweighted.

S samples a ray; `weights` [..., S] are compositing weights, `edges` [..., S+1] distances.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.linalg import dot

HIT_OPACITY = 0.01  # A ray of at least this opacity counts as a hit.


def opacity_loss(opacity: jax.Array) -> jax.Array:
    """Computes sqrt(opacity^2 + 0.01): discourages filling space (DreamFusion, A.2)."""
    return jnp.sqrt(opacity**2 + 0.01)


def orientation_loss(weights: jax.Array, normals: jax.Array, direction: jax.Array) -> jax.Array:
    """Penalizes visible normals that face away (Ref-NeRF, Verbin et al. 2022, eq. 11).

    The weights are constants here, as in DreamFusion: turning normals is allowed, hiding is not.

    Args:
      weights: [..., S].
      normals: [..., S, 3].
      direction: [..., 3] of the rays, away from the camera.
    """
    away = jnp.maximum(dot(normals, direction[..., None, :]), 0.0)
    return jnp.sum(jax.lax.stop_gradient(weights) * away**2, axis=-1)


def mean_over_hits(per_ray: jax.Array, opacity: jax.Array) -> jax.Array:
    """Averages per_ray [...] over the rays whose opacity [...] exceeds `HIT_OPACITY`: [].

    A mean over all rays would depend on how much of the image the object fills (threestudio, too,
    divides its orientation loss by the number of rays that hit). The count has no gradient.
    """
    hits = jnp.sum(opacity > HIT_OPACITY)
    return jnp.sum(per_ray) / jnp.maximum(hits, 1)


def distortion_loss(weights: jax.Array, edges: jax.Array) -> jax.Array:
    """Pulls a ray's weights together (mip-NeRF 360, Barron et al. 2022, eq. 15), in O(S).

    sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i, with middles m and lengths d. Middles ascend,
    so the double sum is twice sum_i w_i (m_i sum_{j<i} w_j - sum_{j<i} w_j m_j).
    """
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    middle = middle - edges[..., :1]  # Small numbers: the two terms below nearly cancel.
    moment = weights * middle
    weights_before = jnp.cumsum(weights, axis=-1) - weights
    moment_before = jnp.cumsum(moment, axis=-1) - moment
    between = 2.0 * jnp.sum(moment * weights_before - weights * moment_before, axis=-1)
    within = jnp.sum(weights**2 * jnp.diff(edges, axis=-1), axis=-1) / 3.0
    return between + within


def entropy_loss(opacity: jax.Array) -> jax.Array:
    """Computes the binary entropy in nats of `opacity` [...]: discourages haze."""
    p = jnp.clip(opacity, 1e-5, 1.0 - 1e-5)
    return -(p * jnp.log(p) + (1.0 - p) * jnp.log1p(-p))


def interlevel_loss(
    edges: jax.Array, weights: jax.Array, proposal_edges: jax.Array, proposal_weights: jax.Array
) -> jax.Array:
    """Penalizes fine weights above the bound of their proposal (mip-NeRF 360, eq. 13).

    The bound of a fine interval is the sum of the proposal weights of all intervals it overlaps.
    Only the proposal learns from this: the fine side is a constant.

    Args:
      edges: [..., S+1] fine.
      weights: [..., S] fine.
      proposal_edges: [..., P+1].
      proposal_weights: [..., P].
    """
    edges, weights = jax.lax.stop_gradient((edges, weights))
    proposal_edges = jax.lax.stop_gradient(proposal_edges)
    overlap = (edges[..., :-1, None] < proposal_edges[..., None, 1:]) & (
        edges[..., 1:, None] > proposal_edges[..., None, :-1]
    )
    bound = jnp.sum(jnp.where(overlap, proposal_weights[..., None, :], 0.0), axis=-1)
    excess = jnp.maximum(weights - bound, 0.0)
    return jnp.sum(excess**2 / (weights + 1e-5), axis=-1)
