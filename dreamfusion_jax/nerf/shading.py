"""Normals from the density's gradient, and a point light (DreamFusion, Poole et al. 2023, eq. 7).

    c = rho (l_diffuse max(0, n . l) + l_ambient),    n = -grad tau / |grad tau|

With l_ambient = 1, l_diffuse = 0 the color is the albedo; with rho = 1 it shows shape alone.
tau is the density, rho the albedo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.linalg import dot, safe_normalize


def density_normals(
    density_fn: Callable[[jax.Array], tuple[jax.Array, Any]], points: jax.Array
) -> tuple[jax.Array, Any, jax.Array]:
    """Returns density [...], the rest of `density_fn`'s output, and outward normals [..., 3].

    The densities of different points do not depend on each other, so one VJP with ones gives the
    gradient at every point; it shares the forward pass with the density itself.
    """
    density, pull, rest = jax.vjp(density_fn, points, has_aux=True)
    (gradient,) = pull(jnp.ones_like(density))
    return density, rest, -safe_normalize(gradient)


def finite_difference_normals(
    density_fn: Callable[[jax.Array], tuple[jax.Array, Any]], points: jax.Array, spacing: float
) -> tuple[jax.Array, Any, jax.Array]:
    """Computes the same as `density_normals` from central differences over `spacing`.

    It evaluates the density at six more points each and takes no derivative: features finer than
    the spacing do not disturb the normals, and the backward pass needs no second derivative.
    """
    density, rest = density_fn(points)
    slopes = [
        density_fn(points + offset)[0] - density_fn(points - offset)[0]
        for offset in spacing * jnp.eye(3)
    ]
    # Divided by the full distance: `safe_normalize` would fade shorter vectors to 0.
    gradient = jnp.stack(slopes, axis=-1) / (2.0 * spacing)
    return density, rest, -safe_normalize(gradient)


def point_light(
    albedo: jax.Array,
    normals: jax.Array,
    points: jax.Array,
    light_position: jax.Array,
    ambient: jax.Array,
    diffuse: jax.Array,
) -> jax.Array:
    """Computes the Lambertian color [..., 3] of points under one point light.

    Args:
      albedo: [..., 3].
      normals: [..., 3] unit vectors; zeros in an unlit view, which leave the ambient light only.
      points: [..., 3].
      light_position: [3].
      ambient: [] l_ambient.
      diffuse: [] l_diffuse.
    """
    to_light = safe_normalize(light_position - points)
    cosine = jnp.maximum(dot(normals, to_light), 0.0)[..., None]
    return albedo * (diffuse * cosine + ambient)
