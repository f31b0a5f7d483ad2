"""Signed-distance solids and their rendering: what the toybox's images are made of.

An object is a list of `Part`s, each a primitive with a pose and a color. Objects of one kind have
the same sequence of primitives, so all of them share one compiled program. The distances to box,
cone, torus and tube are exact, that to an ellipsoid is of first order, and those to dome and prism
are lower bounds outside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf import cameras

BOUND_RADIUS = 1.0
_TILE = 4  # pixels a side: one cone is traced for each tile, then rays from where it stopped
_BLOCK = 32  # tiles whose rays are traced together; their state stays in the cache
_MAX_STEPS = 48
_HIT_PIXELS = 0.02  # a ray this close to a surface has hit it
_STEP_SCALE = 0.9  # the distance to an ellipsoid may be an overestimate


class Part(NamedTuple):
    """One solid. Lengths are world units; `rotation` maps the part's axes into the world.

    Attributes:
      shape: box | ellipsoid | cone | torus | dome | prism | tube.
      center: (3,) position.
      size: (3,) box: half sides; ellipsoid: radii; cone: lower radius, upper radius, half height
        (its axis is z); torus: ring radius, tube radius, unused (its axis is z); dome: radii of the
        ellipsoid of which it is the half above z = 0; prism: a gable along x: half length, half
        width, height above z = 0; tube: middle radius, half wall, half height (its axis is z).
      rounding: added to the surface outwards.
      color: (3,) RGB albedo in [0, 1].
      rotation: (3, 3).
      stripes: (5,) RGB of stripes and how they lie: their number per world unit, and 0 for level
        bands or 1 for wavy upright grain. A number of 0 paints none.
    """

    shape: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    color: tuple[float, float, float]
    rounding: float = 0.0
    rotation: np.ndarray = np.eye(3)
    stripes: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)


class Solids(NamedTuple):
    """Stacked parts; leaves may carry a leading batch axis of objects."""

    center: np.ndarray  # [P, 3]
    size: np.ndarray  # [P, 3]
    color: np.ndarray  # [P, 3]
    rounding: np.ndarray  # [P]
    rotation: np.ndarray  # [P, 3, 3]
    stripes: np.ndarray  # [P, 5]


class Light(NamedTuple):
    """Point light and shading of one image: color = albedo (ambient + diffuse max(0, n . l))."""

    position: np.ndarray  # [3]
    ambient: np.ndarray  # []
    diffuse: np.ndarray  # []


class _Tiles(NamedTuple):
    """The rays of one image, tile by tile; T tiles of N pixels, coordinates first."""

    origin: jax.Array  # [3]
    direction: jax.Array  # [3, T, N]
    radius: jax.Array  # [T, N], of the pixels' cones at unit distance
    start: jax.Array  # [T] the depth up to which a tile's whole cone is empty
    hit: jax.Array  # [T] bool; False where the cone meets nothing


def turn(axis: str, degrees: float) -> np.ndarray:
    """Returns the (3, 3) right-handed rotation by `degrees` about a world axis x, y or z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def stack(parts: list[Part]) -> Solids:
    """Stacks the parts of one object to float32 arrays."""

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(part, name), np.float32) for part in parts])

    return Solids(*map(column, Solids._fields))


def distance(shapes: tuple[str, ...], solids: Solids, point: jax.Array) -> jax.Array:
    """Computes the signed distances [P, ...] of `point` [3, ...] to every part."""
    return jnp.stack(_distances(shapes, solids, point))


@functools.partial(jax.jit, static_argnums=(0, 5))
def render_batch(
    shapes: tuple[str, ...],
    solids: Solids,
    camera: cameras.Camera,
    light: Light,
    background: jax.Array,
    size: int,
) -> jax.Array:
    """Sphere-traces images [B, size, size, 3] in [0, 1]; every argument has a leading batch axis.

    The outline is anti-aliased: the coverage of a ray that misses falls from 1 to 0 as the nearest
    surface recedes to half a pixel. It makes the outline a quarter of a pixel wider all round.

    Args:
      background: [B, 2, 3] colors of the upper and lower edge, blended between.
    """

    def render_one(scene: tuple[Solids, cameras.Camera, Light, jax.Array]) -> jax.Array:
        return _render(shapes, *scene, size)

    # A map, not a vmap: each image traces only as many tiles, and steps, as it needs.
    return jax.lax.map(render_one, (solids, camera, light, background))


def _render(
    shapes: tuple[str, ...],
    solids: Solids,
    camera: cameras.Camera,
    light: Light,
    background: jax.Array,
    size: int,
) -> jax.Array:
    tiles = _trace_tiles(shapes, solids, camera, size)
    count, pixels = tiles.radius.shape
    order = jnp.argsort(~tiles.hit)  # those that hit something first
    order = jnp.pad(order, (0, -count % _BLOCK), constant_values=count)  # beyond: dropped

    def trace_block(block: jax.Array, rgba: jax.Array) -> jax.Array:
        chosen = jax.lax.dynamic_slice(order, (block * _BLOCK,), (_BLOCK,))
        traced = _trace_rays(shapes, solids, light, tiles, jnp.minimum(chosen, count - 1))
        return rgba.at[chosen].set(traced, mode="drop")

    blocks = (jnp.sum(tiles.hit) + _BLOCK - 1) // _BLOCK
    rgba = jax.lax.fori_loop(0, blocks, trace_block, jnp.zeros((count, pixels, 4)))
    across = size // _TILE
    rgba = rgba.reshape(across, across, _TILE, _TILE, 4).transpose(0, 2, 1, 3, 4)
    rgba = rgba.reshape(size, size, 4)
    below = ((jnp.arange(size) + 0.5) / size)[:, None, None]
    behind = (1.0 - below) * background[0] + below * background[1]
    return rgba[..., 3:] * rgba[..., :3] + (1.0 - rgba[..., 3:]) * behind


def _trace_tiles(
    shapes: tuple[str, ...], solids: Solids, camera: cameras.Camera, size: int
) -> _Tiles:
    """Traces one cone around each tile's rays until it touches a surface or leaves the bound."""
    across = size // _TILE
    cone = cameras.pixel_rays(camera, across, across)
    origin, direction = cone.origin[0, 0], jnp.moveaxis(cone.direction, -1, 0).reshape(3, -1)
    # A tile's half diagonal and half a pixel, which the anti-aliasing reaches, in tile widths; and
    # a cone's radius is 2 / sqrt(12) of the width (see cameras.Rays).
    widening = cone.radius.reshape(-1) * jnp.sqrt(3.0) * (0.5 * jnp.sqrt(2.0) + 0.5 / _TILE)
    enter, leave = _bounds(origin, direction)

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, depth, _ = carry
        gap = _nearest(shapes, solids, origin[:, None] + depth * direction) - widening * depth
        depth += _STEP_SCALE * jnp.maximum(gap, 0.0) / (1.0 + widening)
        return step + 1, depth, gap

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        step, depth, gap = carry
        return (step < _MAX_STEPS) & jnp.any((gap > 1e-3) & (depth < leave))

    begin: tuple[Any, ...] = (0, enter, jnp.ones_like(enter))
    _, start, _ = jax.lax.while_loop(unfinished, advance, begin)
    rays = cameras.pixel_rays(camera, size, size)

    def tiled(grid: jax.Array) -> jax.Array:
        grid = grid.reshape(across, _TILE, across, _TILE).transpose(0, 2, 1, 3)
        return grid.reshape(across**2, _TILE**2)

    by_tile = jnp.stack([tiled(rays.direction[..., axis]) for axis in range(3)])
    return _Tiles(origin, by_tile, tiled(rays.radius[..., 0]), start, start < leave)


def _trace_rays(
    shapes: tuple[str, ...], solids: Solids, light: Light, tiles: _Tiles, chosen: jax.Array
) -> jax.Array:
    """Traces and shades the rays of the `chosen` tiles [M]; returns [M, N, 4] RGB and coverage."""
    origin = tiles.origin[:, None]
    direction = tiles.direction[:, chosen].reshape(3, -1)
    radius = tiles.radius[chosen].reshape(-1)
    start = jnp.repeat(tiles.start[chosen], tiles.radius.shape[1])
    _, leave = _bounds(tiles.origin, direction)

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, depth, closest, closest_depth, _ = carry
        gap = _nearest(shapes, solids, origin + depth * direction)
        pixels = gap / (radius * depth)
        closest_depth = jnp.where(pixels < closest, depth, closest_depth)
        done = (jnp.abs(pixels) < _HIT_PIXELS) | (depth > leave)
        depth = jnp.where(done, depth, depth + _STEP_SCALE * gap)
        return step + 1, depth, jnp.minimum(closest, pixels), closest_depth, done

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        return (carry[0] < _MAX_STEPS) & ~jnp.all(carry[-1])

    far = jnp.full_like(start, jnp.inf)
    carry: tuple[Any, ...] = (0, start, far, start, jnp.zeros(start.shape, bool))
    _, _, closest, depth, _ = jax.lax.while_loop(unfinished, advance, carry)
    # A pixel's half width is sqrt(3) / 2 of the cone's radius (see cameras.Rays).
    gap = closest - _HIT_PIXELS
    coverage = jnp.clip(1.0 - 2.0 * gap / jnp.sqrt(3.0), 0.0, 1.0)
    color = _shade(shapes, solids, light, origin + depth * direction)
    rgba = jnp.concatenate([color, coverage[None]]).T
    return rgba.reshape(len(chosen), -1, 4)


def _bounds(origin: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the depths between which a ray may be within the bounding sphere."""
    middle = -jnp.sum(origin[:, None] * direction, axis=0)
    return middle - BOUND_RADIUS, middle + BOUND_RADIUS


def _shade(shapes: tuple[str, ...], solids: Solids, light: Light, surface: jax.Array) -> jax.Array:
    """Returns the lit colors [3, N] of points [3, N] on the surface."""
    # One evaluation for the albedo and, about it, the four corners of a tetrahedron for the
    # gradient: each evaluation written out is compiled anew.
    corners = np.array([(0, 0, 0), (1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)], np.float32).T
    gaps = distance(shapes, solids, surface[:, None] + 1e-3 * corners[..., None])
    albedo = _albedo(solids, jnp.argmin(gaps[:, 0], axis=0), surface)
    normal = jnp.sum(corners[:, 1:, None] * jnp.min(gaps[:, 1:], axis=0), axis=1)
    to_light = light.position[:, None] - surface
    cosine = jnp.sum(normal * to_light, axis=0) / (_length(*normal) * _length(*to_light))
    shade = light.ambient + light.diffuse * jnp.maximum(cosine, 0.0)
    return jnp.clip(albedo * shade, 0.0, 1.0)


def _albedo(solids: Solids, part: jax.Array, surface: jax.Array) -> jax.Array:
    """Returns the colors [3, N] of points [3, N] on the parts `part` [N], stripes included."""
    color, stripes = solids.color[part].T, solids.stripes[part].T
    x, y, z = surface
    wavy = x + y + 0.08 * jnp.sin(5.0 * z)
    along = jnp.where(stripes[4] > 0.0, wavy, z)
    wave = jnp.sin(2.0 * jnp.pi * stripes[3] * along)
    share = jnp.where(stripes[3] > 0.0, jnp.clip(0.5 + 3.0 * wave, 0.0, 1.0), 0.0)
    return (1.0 - share) * color + share * stripes[:3]


def _nearest(shapes: tuple[str, ...], solids: Solids, point: jax.Array) -> jax.Array:
    return functools.reduce(jnp.minimum, _distances(shapes, solids, point))


def _distances(shapes: tuple[str, ...], solids: Solids, point: jax.Array) -> list[jax.Array]:
    """Coordinates lead, so that XLA makes one vectorized loop of all the arithmetic."""
    gaps = []
    for i, shape in enumerate(shapes):
        offset = [point[axis] - solids.center[i, axis] for axis in range(3)]
        local = [sum(solids.rotation[i, j, k] * offset[j] for j in range(3)) for k in range(3)]
        gaps.append(_DISTANCES[shape](*local, solids.size[i]) - solids.rounding[i])
    return gaps


def _box(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    x, y, z = jnp.abs(x) - size[0], jnp.abs(y) - size[1], jnp.abs(z) - size[2]
    inside = jnp.minimum(jnp.maximum(jnp.maximum(x, y), z), 0.0)
    return _length(jnp.maximum(x, 0.0), jnp.maximum(y, 0.0), jnp.maximum(z, 0.0)) + inside


def _ellipsoid(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    x, y, z = x / size[0], y / size[1], z / size[2]
    scaled = _length(x, y, z)
    return scaled * (scaled - 1.0) / _length(x / size[0], y / size[1], z / size[2])


def _cone(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    """Returns the exact distance to a capped cone, whose meridian section is a trapezium."""
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


def _dome(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.maximum(_ellipsoid(x, y, z, size), -z)


def _prism(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    """Returns the largest of the distances to a gable's slopes, ends and floor."""
    length, width, height = size[0], size[1], size[2]
    slope = (jnp.abs(y) * height + (z - height) * width) / _length(width, height)
    return jnp.maximum(jnp.maximum(slope, jnp.abs(x) - length), -z)


def _tube(x: jax.Array, y: jax.Array, z: jax.Array, size: jax.Array) -> jax.Array:
    wall, end = jnp.abs(_length(x, y) - size[0]) - size[1], jnp.abs(z) - size[2]
    inside = jnp.minimum(jnp.maximum(wall, end), 0.0)
    return _length(jnp.maximum(wall, 0.0), jnp.maximum(end, 0.0)) + inside


def _length(*components: jax.Array) -> jax.Array:
    return jnp.sqrt(sum(component**2 for component in components) + 1e-12)


_DISTANCES: dict[str, Callable[..., jax.Array]] = {
    "box": _box,
    "ellipsoid": _ellipsoid,
    "cone": _cone,
    "torus": _torus,
    "dome": _dome,
    "prism": _prism,
    "tube": _tube,
}
