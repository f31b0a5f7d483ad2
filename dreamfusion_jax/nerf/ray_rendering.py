"""What the rays of an image return, and volume rendering of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf import regularizers
from dreamfusion_jax.nerf.cameras import Rays
from dreamfusion_jax.nerf.encoding import frustum_gaussians
from dreamfusion_jax.nerf.fields.field import FieldOutput
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.shading import point_light
from dreamfusion_jax.nerf.view import View
from dreamfusion_jax.nerf.view_rays import Intervals
from dreamfusion_jax.nerf.volume_rendering import composite, compositing_weights, expected_depth

# mean, covariance_diag -> FieldOutput
Query = Callable[[jax.Array, jax.Array], FieldOutput]

# points -> FieldOutput; points -> FieldOutput and outward normals there
QueryNormals = Callable[
    [Callable[[jax.Array], FieldOutput], jax.Array], tuple[FieldOutput, jax.Array]
]


class RayOutputs(NamedTuple):
    """What rays return; all 0 for a ray that misses the scene.

    Attributes:
      color: [..., 3] premultiplied.
      opacity: [...].
      depth: [...].
      normals: [..., 3] composited.
      regularizers: [...] "orientation", "distortion", "interlevel".
    """

    color: jax.Array
    opacity: jax.Array
    depth: jax.Array
    normals: jax.Array
    regularizers: dict[str, jax.Array]


def render_volume(
    options: SceneOptions,
    query: Query,
    query_normals: QueryNormals | None,
    view: View,
    rays: Rays,
    intervals: Intervals,
) -> RayOutputs:
    """Evaluates the field in intervals of rays, lights and composites; None: without normals."""
    gaussians = frustum_gaussians(rays, intervals.edges)
    mean, covariance_diag = gaussians
    deferred = query_normals if options.shading == "deferred" else None
    if query_normals is None or deferred:
        out, normals = query(mean, covariance_diag), jnp.zeros_like(mean)
    else:
        out, normals = query_normals(lambda points: query(points, covariance_diag), mean)
    color = light(view, out.albedo, normals, mean)
    weights = compositing_weights(out.density, intervals.edges)
    # In units of the bounding sphere's diameter, so that a scene's size does not matter.
    relative_edges = intervals.edges / (2.0 * options.bound_radius)
    interlevel = (
        regularizers.interlevel_loss(intervals.edges, weights, *proposal)
        for proposal in intervals.proposals
    )
    outputs = RayOutputs(
        color=composite(weights, color),
        opacity=jnp.sum(weights, axis=-1),
        depth=expected_depth(weights, intervals.edges),
        normals=composite(weights, normals),
        regularizers={
            "orientation": regularizers.orientation_loss(weights, normals, rays.direction),
            "distortion": regularizers.distortion_loss(weights, relative_edges),
            "interlevel": sum(interlevel, jnp.zeros(weights.shape[:-1])),
        },
    )
    if deferred is None:
        return outputs
    return _light_once(view, rays, gaussians, weights, out.albedo, query, deferred, outputs)


def _light_once(
    view: View,
    rays: Rays,
    gaussians: tuple[jax.Array, jax.Array],
    weights: jax.Array,
    albedo: jax.Array,
    query: Query,
    query_normals: QueryNormals,
    unlit: RayOutputs,
) -> RayOutputs:
    """Lights the composited albedo by the normal at the mean of what absorbs each ray.

    That mean is a constant here: light turns the surface and does not move it along the ray.

    Args:
      gaussians: means and diagonal covariances [..., S, 3] of the samples.
      weights: [..., S].
      albedo: [..., S, 3].
      unlit: what the rays return without normals.
    """
    opacity = unlit.opacity[..., None]
    shares = jax.lax.stop_gradient(weights / jnp.maximum(opacity, 1e-6))
    mean, covariance_diag = (composite(shares, x) for x in gaussians)
    _, normals = query_normals(lambda points: query(points, covariance_diag), mean)
    albedo = composite(weights, jnp.where(view.textureless, 1.0, albedo))
    orientation = regularizers.orientation_loss(opacity, normals[..., None, :], rays.direction)
    return unlit._replace(
        color=point_light(albedo, normals, mean, view.light_position, view.ambient, view.diffuse),
        normals=opacity * normals,
        regularizers={**unlit.regularizers, "orientation": orientation},
    )


def light(view: View, albedo: jax.Array, normals: jax.Array, points: jax.Array) -> jax.Array:
    """Returns the color [..., 3] of points [..., 3] under the view's light."""
    albedo = jnp.where(view.textureless, 1.0, albedo)
    return point_light(albedo, normals, points, view.light_position, view.ambient, view.diffuse)
