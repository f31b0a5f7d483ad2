"""Signed-distance solids and their rendering: what the toybox's pictures are made of.

An object is a list of `Part`s, each a primitive with a pose and a color. Objects of one kind have
the same sequence of primitives, so a batch of them is one compiled program. The distances to box,
cone and torus are exact, that to an ellipsoid is of first order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf import cameras

_STEPS = 40
_BOUND_RADIUS = 1.0


class Part(NamedTuple):
    """One solid. Lengths are world units; `rotation` maps the part's axes into the world.

    Attributes:
      shape: box | ellipsoid | cone | torus.
      center: (3,) position.
      size: (3,) box: half sides; ellipsoid: radii; cone: lower radius, upper radius, half height
        (its axis is z); torus: ring radius, tube radius, unused (its axis is z).
      rounding: added to the surface outwards.
      color: (3,) RGB albedo in [0, 1].
      rotation: (3, 3).
    """

    shape: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    color: tuple[float, float, float]
    rounding: float = 0.0
    rotation: np.ndarray = np.eye(3)


class Solids(NamedTuple):
    """Stacked parts; leaves may carry a leading batch axis of objects."""

    center: np.ndarray  # [P, 3]
    size: np.ndarray  # [P, 3]
    color: np.ndarray  # [P, 3]
    rounding: np.ndarray  # [P]
    rotation: np.ndarray  # [P, 3, 3]


class Light(NamedTuple):
    """Point light and shading of one picture: color = albedo (ambient + diffuse max(0, n . l))."""

    position: np.ndarray  # [3]
    ambient: np.ndarray  # []
    diffuse: np.ndarray  # []


def turn(axis: str, degrees: float) -> np.ndarray:
    """The (3, 3) right-handed rotation by `degrees` about a world axis x, y or z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def stack(parts: list[Part]) -> Solids:
    """Parts of one object as float32 arrays."""

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(part, name), np.float32) for part in parts])

    return Solids(*map(column, Solids._fields))


def distance(shapes: tuple[str, ...], solids: Solids, point: jax.Array) -> jax.Array:
    """Signed distances [P, ...] of `point` [3, ...] to every part.

    Coordinates lead, so that XLA makes one vectorized loop of all the arithmetic.
    """
    gaps = []
    for i, shape in enumerate(shapes):
        offset = [point[axis] - solids.center[i, axis] for axis in range(3)]
        local = [sum(solids.rotation[i, j, k] * offset[j] for j in range(3)) for k in range(3)]
        gaps.append(_DISTANCES[shape](*local, solids.size[i]) - solids.rounding[i])
    return jnp.stack(gaps)


@functools.partial(jax.jit, static_argnums=(0, 5))
def render_batch(
    shapes: tuple[str, ...],
    solids: Solids,
    camera: cameras.Camera,
    light: Light,
    background: jax.Array,
    size: int,
) -> jax.Array:
    """Sphere-traced pictures [B, size, size, 3] in [0, 1]; every argument has a leading batch axis.

    The outline is anti-aliased: the coverage of a ray that misses falls from 1 to 0 as the nearest
    surface recedes to half a pixel. It makes the outline a quarter of a pixel wider all round.
    """

    def render_one(
        solids: Solids, camera: cameras.Camera, light: Light, background: jax.Array
    ) -> jax.Array:
        return _render(shapes, solids, camera, light, background, size)

    return jax.vmap(render_one)(solids, camera, light, background)


def _render(
    shapes: tuple[str, ...],
    solids: Solids,
    camera: cameras.Camera,
    light: Light,
    background: jax.Array,
    size: int,
) -> jax.Array:
    rays = cameras.pixel_rays(camera, size, size)
    origin, direction = jnp.moveaxis(rays.origin, -1, 0), jnp.moveaxis(rays.direction, -1, 0)

    def nearest(point: jax.Array) -> jax.Array:
        return functools.reduce(jnp.minimum, distance(shapes, solids, point))

    def march(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        s, closest, s_closest = carry
        gap = nearest(origin + s * direction)
        pixels = gap / (rays.radius[..., 0] * s)
        s_closest = jnp.where(pixels < closest, s, s_closest)
        return s + 0.9 * gap, jnp.minimum(closest, pixels), s_closest

    start = -jnp.sum(origin * direction, axis=0) - _BOUND_RADIUS
    far = jnp.full_like(start, jnp.inf)
    _, closest, s = jax.lax.fori_loop(0, _STEPS, march, (start, far, start))
    # A pixel's half width is sqrt(3) / 2 of the cone's radius (see cameras.Rays).
    coverage = jnp.clip(1.0 - 2.0 * closest / jnp.sqrt(3.0), 0.0, 1.0)
    color = _shade(shapes, solids, light, origin + s * direction)
    return coverage[..., None] * color + (1.0 - coverage[..., None]) * background


def _shade(shapes: tuple[str, ...], solids: Solids, light: Light, surface: jax.Array) -> jax.Array:
    albedo = solids.color[jnp.argmin(distance(shapes, solids, surface), axis=0)]
    # The gradient from the four corners of a tetrahedron.
    normal = jnp.zeros_like(surface)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        step = jnp.array(corner, jnp.float32)[:, None, None]
        normal += step * jnp.min(distance(shapes, solids, surface + 1e-3 * step), axis=0)
    to_light = light.position[:, None, None] - surface
    cosine = jnp.sum(normal * to_light, axis=0) / (_length(*normal) * _length(*to_light))
    shade = light.ambient + light.diffuse * jnp.maximum(cosine, 0.0)
    return jnp.clip(albedo * shade[..., None], 0.0, 1.0)


def _box(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    x, y, z = jnp.abs(x) - size[0], jnp.abs(y) - size[1], jnp.abs(z) - size[2]
    inside = jnp.minimum(jnp.maximum(jnp.maximum(x, y), z), 0.0)
    return _length(jnp.maximum(x, 0.0), jnp.maximum(y, 0.0), jnp.maximum(z, 0.0)) + inside


def _ellipsoid(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    x, y, z = x / size[0], y / size[1], z / size[2]
    scaled = _length(x, y, z)
    return scaled * (scaled - 1.0) / _length(x / size[0], y / size[1], z / size[2])


def _cone(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    """Capped cone, exact: its meridian section is a trapezium with caps and a slanted side."""
    lower, upper, half = size[0], size[1], size[2]
    x = _length(x, y)
    cap_x = x - jnp.minimum(x, jnp.where(z < 0.0, lower, upper))
    cap_z = jnp.abs(z) - half
    run, rise = upper - lower, 2.0 * half
    along = ((upper - x) * run + (half - z) * rise) / (run**2 + rise**2)
    along = jnp.clip(along, 0.0, 1.0)
    side_x, side_z = x - upper + run * along, z - half + rise * along
    squared = jnp.minimum(cap_x**2 + cap_z**2, side_x**2 + side_z**2)
    inside = (side_x < 0.0) & (cap_z < 0.0)
    return jnp.where(inside, -1.0, 1.0) * jnp.sqrt(squared + 1e-12)


def _torus(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    return _length(_length(x, y) - size[0], z) - size[1]


def _length(*components: jax.Array) -> jax.Array:
    return jnp.sqrt(sum(component**2 for component in components) + 1e-12)


_DISTANCES: dict[str, Callable[..., jax.Array]] = {
    "box": _box,
    "ellipsoid": _ellipsoid,
    "cone": _cone,
    "torus": _torus,
}
