"""A field on a trilinear grid; interpolation shared with hash grids and the proposal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.fields.field import Field, FieldOutput, Head, Params

_CORNERS = tuple(itertools.product((0, 1), repeat=3))  # of a cell, along x, y, z


def trilinear(grid: jax.Array, position: jax.Array) -> jax.Array:
    """Interpolates `grid` [R, R, R, C], which spans [-1, 1]^3, at `position` [..., 3] -> [..., C].

    Positions outside take the value at the nearest point of the faces.
    """
    resolution, channels = grid.shape[0], grid.shape[-1]
    rows, value = grid.reshape(-1, channels), jnp.float32(0.0)
    for corner, weight in cell_corners(0.5 * (position + 1.0), jnp.uint32(resolution - 1)):
        x, y, z = (corner[..., axis] for axis in range(3))
        value += weight * rows[(x * resolution + y) * resolution + z]
    return value


def cell_corners(position: jax.Array, cells: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the corners [..., 3] (uint32) of each position's cell, with their weights [..., 1].

    The weights are those of trilinear interpolation. Positions outside count as the nearest ones
    inside. The eight corners come one by one: with an axis of eight XLA on CPU keeps all of them in
    memory, and takes many times as long.

    Args:
      position: [..., 3] in [0, 1]^3.
      cells: cells a side of the grid.
    """
    lowest, fraction = _cell(position, cells)
    for corner in _CORNERS:
        sides = (
            fraction[..., axis] if upper else 1.0 - fraction[..., axis]
            for axis, upper in enumerate(corner)
        )
        weight = math.prod(sides, start=jnp.float32(1.0))[..., None]
        yield lowest + np.array(corner, np.uint32), weight


def corner_table(grid: jax.Array) -> jax.Array:
    """Returns the cells [R-1, R-1, R-1, 8] of `grid` [R, R, R], each with its corners' values.

    Pays off where many points are looked up in a small grid: each lookup reads one row instead of
    eight scattered values, and XLA on CPU computes the index once instead of eight times, forward
    and backward.
    """
    cells = grid.shape[0] - 1
    corners = (jax.lax.dynamic_slice(grid, corner, (cells, cells, cells)) for corner in _CORNERS)
    return jnp.stack(list(corners), axis=-1)


def look_up(table: jax.Array, position: jax.Array) -> jax.Array:
    """Interpolates a `corner_table` at `position` [..., 3], as `trilinear` does its grid: [...]."""
    cells = table.shape[0]
    lowest, fraction = _cell(0.5 * (position + 1.0), jnp.uint32(cells))
    x, y, z = (lowest[..., axis] for axis in range(3))
    values = table.reshape(-1, 8)[(x * cells + y) * cells + z]
    upper = np.array(_CORNERS, np.float32)
    # Per axis, a corner's weight is f at the upper side of the cell and 1 - f at the lower.
    sides = ((1 - u) + (2 * u - 1) * fraction[..., axis, None] for axis, u in enumerate(upper.T))
    return jnp.sum(values * math.prod(sides, start=jnp.float32(1.0)), axis=-1)


def _cell(position: jax.Array, cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the lowest corner [..., 3] (uint32) of a position's cell, and the offset in it."""
    scaled = jnp.clip(position, 0.0, 1.0) * cells
    lowest = jnp.minimum(jnp.floor(scaled), cells.astype(jnp.float32) - 1.0)
    return lowest.astype(jnp.uint32), scaled - lowest


def grid_field(resolution: int, bound_radius: float, head: Head) -> Field:
    """Makes an unfiltered grid of raw density and albedo logits over the bounding cube."""

    def init(key: jax.Array) -> Params:
        return {"grid": 0.1 * jax.random.normal(key, (resolution,) * 3 + (4,))}

    def query(
        params: Params, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> FieldOutput:
        del covariance_diag
        raw = trilinear(params["grid"], mean / bound_radius)
        return head.output(raw, mean, step)

    return Field(init, query)
