"""Conical frusta as Gaussians, and the encodings of positions that the networks read.

mip-NeRF (Barron et al. 2021): a pixel sees a cone; an interval of it is a conical frustum, which is
replaced by the Gaussian of the same mean and covariance (section 3.1); the expectation of the
positional encoding under that Gaussian has a closed form (eq. 14) that only needs the diagonal of
the covariance, so only the diagonal is computed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.cameras import Rays

_DOUBLED = 4  # frequencies computed from one sine


def frustum_gaussians(rays: Rays, edges: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and diagonal covariance, each [..., S, 3], of the frusta of intervals.

    The moments are exact for a cone with radius `rays.radius` at unit distance, written in
    the middle m and half-length h of the interval so that nothing cancels (mip-NeRF, eq. 7).

    Args:
      rays: [...].
      edges: [..., S+1] distances.
    """
    m = 0.5 * (edges[..., 1:] + edges[..., :-1])
    h = 0.5 * (edges[..., 1:] - edges[..., :-1])
    m2, h2 = m**2, h**2
    # h^2 / (3 m^2 + h^2), without 0 / 0: an interval of no length at the origin is a point.
    ratio = h2 / jnp.maximum(3.0 * m2 + h2, 1e-12)
    mean_s = m + 2.0 * m * ratio
    variance_s = h2 / 3.0 - (4.0 / 15.0) * ratio**2 * (12.0 * m2 - h2)
    variance_r = rays.radius**2 * (m2 / 4.0 + (5.0 / 12.0) * h2 - (4.0 / 15.0) * h2 * ratio)
    direction = rays.direction[..., None, :]
    mean = rays.origin[..., None, :] + mean_s[..., None] * direction
    along = direction**2
    # Directions are unit vectors, hence I - d d^T across the ray (eq. 8, 16).
    covariance_diag = variance_s[..., None] * along + variance_r[..., None] * (1.0 - along)
    return mean, covariance_diag


def integrated_positional_encoding(
    mean: jax.Array, covariance_diag: jax.Array, min_degree: int, max_degree: int
) -> jax.Array:
    """Computes E[sin(2^l x)], E[cos(2^l x)] for min_degree <= l < max_degree under a Gaussian.

    Every fourth frequency takes one sin, one cos and one exp; those between follow by the double
    angle, and the fourth power of the damping. Rounding errors grow up to fourfold with each such
    step: doubled all the way, the last of eight would be off by up to 4.5e-4.

    Args:
      mean: [..., 3].
      covariance_diag: [..., 3].
      min_degree: l of the lowest frequency.
      max_degree: one above the l of the highest.

    Returns:
      [..., 6 (max_degree - min_degree)], for each l three sines and then three cosines.
    """
    features = []
    for degree in range(min_degree, max_degree):
        if (degree - min_degree) % _DOUBLED == 0:
            frequency = 2.0**degree
            sine, cosine = jnp.sin(frequency * mean), jnp.cos(frequency * mean)
            damping = jnp.exp(-0.5 * frequency**2 * covariance_diag)
        else:
            sine, cosine = 2.0 * sine * cosine, 1.0 - 2.0 * sine**2
            damping = jnp.square(jnp.square(damping))
        features += [damping * sine, damping * cosine]
    return jnp.concatenate(features, axis=-1)


def positional_encoding(x: jax.Array, min_degree: int, max_degree: int) -> jax.Array:
    """Computes sin(2^l x), cos(2^l x): the integrated encoding of points [..., D]."""
    return integrated_positional_encoding(x, jnp.zeros_like(x), min_degree, max_degree)
