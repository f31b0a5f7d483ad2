"""A signed distance to a surface, and the density that VolSDF makes of it.

s(x) is the distance [...] of x to the surface, negative inside. VolSDF (Yariv et al. 2021,
arXiv:2106.12052, eq. 2 and 3) renders it as the density

    density = Psi_beta(-s) / beta,     Psi_beta: the CDF of the Laplace distribution of scale beta

which is 1 / beta inside, 0 outside, and as soft an edge as beta is wide. beta falls during the
optimization, so the surface sharpens from mist. s starts as the distance to a sphere (IGR, Gropp et
al. 2020, arXiv:2002.10099), from which a network's output departs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.fields.density import progress
from dreamfusion_jax.nerf.fields.field import FieldOutput
from dreamfusion_jax.nerf.linalg import dot, safe_normalize

# Units of length per unit of a network's output: an output of 1 is a visible dent in a sphere of
# 0.5, as it is a visible change of a density of `blob_scale` 4 over `blob_radius` 0.5.
_RAW_GAIN = 0.125
# The proposal keeps one soft edge: it only has to say where the surface is likely to be.
_PROPOSAL_BETA = 0.03

# Pairs of normals are compared over this length, within about as much of the surface.
_SMOOTHNESS_LENGTH = 0.05


class SignedDistance(NamedTuple):
    """Turns a network's raw output into a signed distance and its density.

    Attributes:
      radius: of the sphere that the surface starts as.
      beta_start, beta_end: width of the density's edge at the first step, and from `beta_steps` on.
      beta_steps: steps over which it falls, exponentially.
    """

    radius: float = 0.5
    beta_start: float = 0.1
    beta_end: float = 0.012
    beta_steps: int = 900

    def distance(self, raw: jax.Array, position: jax.Array) -> jax.Array:
        """Returns the distance [...] of raw outputs [...] at positions [..., 3]."""
        # The tiny term makes the middle of the sphere differentiable.
        sphere = jnp.sqrt(dot(position, position) + 1e-8) - self.radius
        return sphere - _RAW_GAIN * raw

    def beta(self, step: jax.Array) -> jax.Array:
        """Returns the width [] of the density's edge at `step`."""
        fallen = progress(step, 0, self.beta_steps)
        return self.beta_start * (self.beta_end / self.beta_start) ** fallen

    def __call__(
        self, raw: jax.Array, position: jax.Array, step: jax.Array | None = None
    ) -> jax.Array:
        """Returns the density [...]; without a step, with the edge of a proposal."""
        beta = jnp.float32(_PROPOSAL_BETA) if step is None else self.beta(step)
        return laplace_density(self.distance(raw, position), beta)

    def output(self, raw: jax.Array, position: jax.Array, step: jax.Array) -> FieldOutput:
        """Returns what a field says of a network's four outputs [..., 4]."""
        distance = self.distance(raw[..., 0], position)
        density = laplace_density(distance, self.beta(step))
        return FieldOutput(density, nn.sigmoid(raw[..., 1:]), distance)


def laplace_density(distance: jax.Array, beta: jax.Array) -> jax.Array:
    """Returns the density Psi_beta(-s) / beta [...] of signed distances s [...] (VolSDF, eq. 2)."""
    tail = 0.5 * jnp.exp(-jnp.abs(distance) / beta)
    return jnp.where(distance > 0.0, tail, 1.0 - tail) / beta


# points [N, 3] -> signed distance [N]
DistanceFn = Callable[[jax.Array], jax.Array]


def surface_regularizers(
    distance_fn: DistanceFn, radius: float, count: int, key: jax.Array
) -> dict[str, jax.Array]:
    """Measures at random points how far a field is from a distance, and its surface from smooth.

    Args:
      distance_fn: points [N, 3] -> [N]; points do not depend on each other.
      radius: of the ball that the points are uniform in.
      count: N.
      key: of the points.

    Returns:
      "eikonal": the mean of (|grad s| - 1)^2, which is 0 for a distance (IGR, eq. 2); and
      "smoothness": the mean squared difference of the normals of points 0.05 apart, near the
      surface: its curvature (RegSDF, Zhang et al. 2022; threestudio's normal smoothness). The
      points of a pair lie along the surface: across a thin sheet normals are opposite, and a loss
      on those would dissolve it.
    """
    point_key, offset_key = jax.random.split(key)
    points = radius * jax.random.ball(point_key, 3, shape=(count,))
    offsets = _SMOOTHNESS_LENGTH * jax.random.normal(offset_key, points.shape) / jnp.sqrt(3.0)
    distance, gradient = value_and_gradient(distance_fn, points)
    one = safe_normalize(gradient)
    across = jax.lax.stop_gradient(one)
    along = offsets - dot(offsets, across)[..., None] * across
    beside = value_and_gradient(distance_fn, points + along)[1]
    other = safe_normalize(beside)
    gradients = jnp.concatenate([gradient, beside])
    norm = jnp.sqrt(dot(gradients, gradients) + 1e-12)
    near = jax.lax.stop_gradient(jnp.exp(-jnp.abs(distance) / _SMOOTHNESS_LENGTH))
    bend = near * jnp.sum((one - other) ** 2, axis=-1)
    return {
        "eikonal": jnp.mean((norm - 1.0) ** 2),
        "smoothness": jnp.sum(bend) / jnp.maximum(jnp.sum(near), 1.0),
    }


def value_and_gradient(distance_fn: DistanceFn, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the distance [N] and its gradient [N, 3] at points [N, 3], by one pull-back."""
    distance, pull = jax.vjp(distance_fn, points)
    (gradient,) = pull(jnp.ones_like(distance))
    return distance, gradient


def project_to_surface(
    distance_fn: DistanceFn, points: jax.Array, max_step: jax.Array | float, rounds: int = 4
) -> jax.Array:
    """Moves points [N, 3] onto the zero level set, by Newton steps along the gradient.

    Args:
      max_step: the greatest length of one step, so that a flat spot sends no point far away.
    """
    for _ in range(rounds):
        distance, gradient = value_and_gradient(distance_fn, points)
        step = distance / jnp.maximum(dot(gradient, gradient), 1e-6)
        shift = step[..., None] * gradient
        length = jnp.sqrt(dot(shift, shift) + 1e-20)[..., None]
        points = points - shift * jnp.minimum(1.0, max_step / length)
    return points
