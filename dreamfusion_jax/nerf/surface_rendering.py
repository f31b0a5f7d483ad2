"""Surface rendering: a ray has the color of the point where it first meets a surface.

f(x) is the signed distance, d a ray's direction, s the distance along it. Sphere tracing (Hart
1996) finds the crossing x_0, without a gradient; where a step has gone too far, the crossing lies
between the last two points, and the secant method finds it. The crossing moves with the parameters
theta by the implicit function (IDR, Yariv et al. 2020, arXiv:2003.09852, eq. 3):

    x(theta) = x_0 - d (f_theta(x_0) - f(x_0)) / (grad f(x_0) . d)

A hit or a miss has no gradient, so a ray counts as much as the silhouette covers of its pixel:

    opacity = sigmoid(l / b),    l = -f_theta(x_m) / |grad f(x_m) - (grad f(x_m) . d) d|

x_m is the point of the ray that lies deepest inside the surface, or passes nearest to it, so l is,
to first order, the distance to the silhouette across the ray, positive inside; in the middle of a
plate that the ray pierces the gradient is along the ray, and l is infinite. b is such that the
logistic distribution has the variance of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.cameras import Rays
from dreamfusion_jax.nerf.fields.field import FieldOutput
from dreamfusion_jax.nerf.fields.sdf import value_and_gradient
from dreamfusion_jax.nerf.linalg import dot
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.ray_rendering import QueryNormals, RayOutputs, light
from dreamfusion_jax.nerf.view import View
from dreamfusion_jax.nerf.view_rays import BoundedRays

# In pixels at their distance: the shortest step, because along a flat surface distances are small,
# and the distance at which a ray has arrived, lest that step should leap over a thin part.
_SHORTEST_STEP = 0.2
_ARRIVED = 0.005
# The longest step, as a multiple of the one that would cover the scene in all steps.
_LONGEST_STEP = 2.0
_SECANTS = 5
# Where to look for the deepest point behind a crossing, in pixels at its distance.
_DEPTHS = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 6.5)
POINTS_PER_RAY = len(_DEPTHS)
# Below, crossings move no faster, and the distance across the ray is no longer.
_MIN_SLOPE = 0.05
_MIN_SLOPE_ACROSS = 0.1
# A cone of radius 1 has the variance of a pixel that is sqrt(3) wide, and so has a logistic
# distribution of this scale: pi^2 b^2 / 3 = width^2 / 12.
_PIXEL_WIDTH = math.sqrt(3.0)
_LOGISTIC_SCALE = _PIXEL_WIDTH / (2.0 * math.pi)

# points [N, 3] -> FieldOutput with a distance
PointQuery = Callable[[jax.Array], FieldOutput]
# distances along N rays [N] -> f [N]
_AlongRays = Callable[[jax.Array], jax.Array]


class Crossing(NamedTuple):
    """Where rays meet the surface; constants to every derivative.

    Attributes:
      hit: [N] bool, whether the ray meets it.
      distance: [N] s of the crossing; of a miss, of the point nearest to the surface.
      inverse_slope: [N] 1 / (grad f . d) at the crossing; 0 where it does not move.
      silhouette_distance: [N] s of x_m.
      slope_across: [N] |grad f - (grad f . d) d| at x_m.
    """

    hit: jax.Array
    distance: jax.Array
    inverse_slope: jax.Array
    silhouette_distance: jax.Array
    slope_across: jax.Array


def render_surface(
    options: SceneOptions,
    query: PointQuery,
    query_normals: QueryNormals | None,
    view: View,
    bounded: BoundedRays,
    traced: Crossing,
) -> RayOutputs:
    """Renders rays [N] by the color of the surface that they meet; None: without normals."""
    rays = bounded.rays
    start = _points(rays, traced.distance)
    both = jnp.concatenate([start, _points(rays, traced.silhouette_distance)])
    at_crossing, at_silhouette = jnp.split(signed_distance(query(both)), 2)
    shift = (at_crossing - jax.lax.stop_gradient(at_crossing)) * traced.inverse_slope
    points = start - shift[..., None] * rays.direction
    opacity = _coverage(at_silhouette, traced, options.silhouette_width * rays.radius[..., 0])
    opacity = jnp.where((bounded.far > bounded.near)[..., 0], opacity, 0.0)
    if query_normals is None:
        out, normals = query(points), jnp.zeros_like(points)
    else:
        out, normals = query_normals(query, points)
    away = jnp.maximum(dot(normals, rays.direction), 0.0)
    return RayOutputs(
        color=opacity[..., None] * light(view, out.albedo, normals, points),
        opacity=opacity,
        depth=jnp.where(opacity > 1e-3, traced.distance - shift, 0.0),
        normals=opacity[..., None] * normals,
        regularizers={
            "orientation": jax.lax.stop_gradient(opacity) * away**2,
            "distortion": jnp.zeros_like(opacity),
            "interlevel": jnp.zeros_like(opacity),
        },
    )


def _points(rays: Rays, distance: jax.Array) -> jax.Array:
    return rays.origin + distance[..., None] * rays.direction


def signed_distance(out: FieldOutput) -> jax.Array:
    """Returns f [...] of a field that has it."""
    assert out.sdf is not None, "a surface is rendered of a signed distance"
    return out.sdf


def _coverage(distance: jax.Array, traced: Crossing, radius: jax.Array) -> jax.Array:
    """Returns the share [N] of a pixel inside the silhouette, from f [N] at x_m."""
    across = -distance / jnp.maximum(traced.slope_across, _MIN_SLOPE_ACROSS)
    return jax.nn.sigmoid(across / (_LOGISTIC_SCALE * radius * traced.silhouette_distance + 1e-9))


def trace(query: PointQuery, bounded: BoundedRays, steps: int) -> Crossing:
    """Finds where rays [N] first cross from outside to inside, or pass nearest to it.

    Args:
      query: the field, whose params should be constants, as the results are.
      steps: of the march from `near`; a ray that has not arrived by then has missed.
    """
    rays = bounded.rays
    near, far = bounded.near[..., 0], bounded.far[..., 0]
    pixel = _PIXEL_WIDTH * rays.radius[..., 0]

    def distance_fn(points: jax.Array) -> jax.Array:
        return signed_distance(query(points))

    def along(distance: jax.Array) -> jax.Array:
        return distance_fn(_points(rays, distance))

    march = _march(along, near, far, pixel, steps)
    crossing = jnp.where(march.crossed, _secant(along, march, pixel), march.nearest)
    deepest = _deepest(along, crossing, pixel)
    silhouette = jnp.where(march.crossed, deepest, march.nearest)
    both = jnp.concatenate([_points(rays, crossing), _points(rays, silhouette)])
    f, gradient = value_and_gradient(distance_fn, both)
    at_crossing, at_silhouette = jnp.split(gradient, 2)
    moves = march.crossed & (march.inside > near)
    slope = jnp.minimum(dot(at_crossing, rays.direction), -_MIN_SLOPE)
    inverse_slope = jnp.where(moves, 1.0 / slope, 0.0)
    across = at_silhouette - dot(at_silhouette, rays.direction)[..., None] * rays.direction
    return Crossing(
        hit=march.crossed,
        distance=crossing - f[: len(crossing)] * inverse_slope,
        inverse_slope=inverse_slope,
        silhouette_distance=silhouette,
        slope_across=jnp.sqrt(dot(across, across)),
    )


class _March(NamedTuple):
    """The state of a march along rays, each [N].

    Attributes:
      at: s of the point to look at next.
      outside, f_outside: the last point outside, and f there.
      inside, f_inside: the first point inside, and f there.
      nearest, f_nearest: the point of the least f so far.
      crossed: bool, whether there is a point inside.
    """

    at: jax.Array
    outside: jax.Array
    f_outside: jax.Array
    inside: jax.Array
    f_inside: jax.Array
    nearest: jax.Array
    f_nearest: jax.Array
    crossed: jax.Array


def _march(
    along: _AlongRays, near: jax.Array, far: jax.Array, pixel: jax.Array, steps: int
) -> _March:
    """Steps by the distance found from `near` to the surface, or to `far`."""
    one = jnp.ones_like(near)
    longest = (_LONGEST_STEP / steps) * (far - near)
    start = _March(near, near, one, near, -one, near, jnp.inf * one, jnp.zeros_like(near, bool))

    def step(_: int, before: _March) -> _March:
        s = before.at
        f = along(s)
        arrived = f <= _ARRIVED * pixel * s
        enters, outside = ~before.crossed & arrived, ~(before.crossed | arrived)
        nearer = ~before.crossed & (f < before.f_nearest)
        # f may be too great: then it falls faster than s rises.
        fall = (before.f_outside - f) / jnp.maximum(s - before.outside, 1e-9)
        length = f / jnp.where(s > before.outside, jnp.maximum(fall, 1.0), 1.0)
        length = jnp.clip(length, _SHORTEST_STEP * pixel * s, longest)
        onward = jnp.minimum(s + length, far)
        return _March(
            at=jnp.where(outside, onward, s),
            outside=jnp.where(outside, s, before.outside),
            f_outside=jnp.where(outside, f, before.f_outside),
            inside=jnp.where(enters, s, before.inside),
            f_inside=jnp.where(enters, f, before.f_inside),
            nearest=jnp.where(nearer, s, before.nearest),
            f_nearest=jnp.where(nearer, f, before.f_nearest),
            crossed=before.crossed | enters,
        )

    return jax.lax.fori_loop(0, steps, step, start)


def _secant(along: _AlongRays, march: _March, pixel: jax.Array) -> jax.Array:
    """Returns where [N], between a point outside and one inside, a ray arrives.

    The Illinois method: a side that stays twice counts half, so that the other one moves, too.
    """
    tolerance = _ARRIVED * pixel * march.inside
    # The tolerance grows with s, so that the outer point may lie within that of the inner one.
    f_outside = jnp.maximum(march.f_outside - tolerance, 0.0)
    f_inside = march.f_inside - tolerance
    ends = (march.outside, f_outside, march.inside, f_inside)

    def middle(ends: tuple[jax.Array, ...]) -> jax.Array:
        a, f_a, b, f_b = ends
        return a + (b - a) * f_a / jnp.maximum(f_a - f_b, 1e-12)

    def step(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a, f_a, b, f_b, last = state
        s = middle((a, f_a, b, f_b))
        f = along(s) - tolerance
        out = f > 0.0
        half_a = jnp.where(~out & (last < 0), 0.5 * f_a, f_a)
        half_b = jnp.where(out & (last > 0), 0.5 * f_b, f_b)
        return (
            jnp.where(out, s, a),
            jnp.where(out, f, half_a),
            jnp.where(out, b, s),
            jnp.where(out, half_b, f),
            jnp.where(out, 1, -1),
        )

    state = (*ends, jnp.zeros_like(march.outside, jnp.int32))
    return middle(jax.lax.fori_loop(0, _SECANTS, step, state)[:4])


def _deepest(along: _AlongRays, crossing: jax.Array, pixel: jax.Array) -> jax.Array:
    """Returns s [N] of the least f within a few pixels behind a crossing, before the ray leaves."""
    behind = jnp.array(_DEPTHS)[:, None] * (pixel * crossing)
    f = jax.vmap(along)(crossing + behind)
    still_inside = jnp.cumprod(f <= _ARRIVED * pixel * crossing, axis=0) > 0
    f = jnp.where(still_inside, f, jnp.inf)
    deepest = jnp.take_along_axis(behind, jnp.argmin(f, axis=0)[None], axis=0)[0]
    return crossing + jnp.where(still_inside[0], deepest, 0.0)
