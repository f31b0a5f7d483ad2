"""A field on a trilinear grid, and what it shares with hashed grids and the proposal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.fields.density import Density
from dreamfusion_jax.nerf.fields.field import Field, FieldOutput

_CORNERS = tuple(itertools.product((0, 1), repeat=3))  # of a cell, along x, y, z


def trilinear(grid: jax.Array, position: jax.Array) -> jax.Array:
    """Interpolates `grid` [R, R, R, C], which spans [-1, 1]^3, at `position` [..., 3] -> [..., C].

    Positions outside take the value of the nearest face.
    """
    resolution, channels = grid.shape[0], grid.shape[-1]
    rows, value = grid.reshape(-1, channels), jnp.float32(0.0)
    for corner, share in cell_corners(0.5 * (position + 1.0), jnp.uint32(resolution - 1)):
        x, y, z = (corner[..., axis] for axis in range(3))
        value += share * rows[(x * resolution + y) * resolution + z]
    return value


def cell_corners(position: jax.Array, cells: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The eight corners [..., 3] (uint32) of the cell that `position` [..., 3] lies in, each with
    its share [..., 1] in the trilinear interpolation, on a grid of `cells` a side over [0, 1]^3.

    Positions outside count as the nearest ones inside. One corner after another: with an axis of
    eight XLA on CPU keeps all of them in memory, and takes many times as long.
    """
    lowest, fraction = _cell(position, cells)
    for corner in _CORNERS:
        sides = (
            fraction[..., axis] if upper else 1.0 - fraction[..., axis]
            for axis, upper in enumerate(corner)
        )
        share = math.prod(sides, start=jnp.float32(1.0))[..., None]
        yield lowest + np.array(corner, np.uint32), share


def corner_table(grid: jax.Array) -> jax.Array:
    """`grid` [R, R, R] as cells [R-1, R-1, R-1, 8], each with the values at its corners.

    Worth its size where many points are looked up in a small grid: each takes one row then, not
    eight values from eight places, and XLA on CPU computes what leads to it once instead of eight
    times, forward and backward.
    """
    cells = grid.shape[0] - 1
    corners = (jax.lax.dynamic_slice(grid, corner, (cells, cells, cells)) for corner in _CORNERS)
    return jnp.stack(list(corners), axis=-1)


def look_up(table: jax.Array, position: jax.Array) -> jax.Array:
    """What `trilinear` says of the grid [R, R, R, 1] that a `corner_table` was made of: [...]."""
    cells = table.shape[0]
    lowest, fraction = _cell(0.5 * (position + 1.0), jnp.uint32(cells))
    x, y, z = (lowest[..., axis] for axis in range(3))
    values = table.reshape(-1, 8)[(x * cells + y) * cells + z]
    upper = np.array(_CORNERS, np.float32)
    # By axes, each corner's share is f where it is the upper one and 1 - f where it is the lower.
    sides = ((1 - u) + (2 * u - 1) * fraction[..., axis, None] for axis, u in enumerate(upper.T))
    return jnp.sum(values * math.prod(sides, start=jnp.float32(1.0)), axis=-1)


def _cell(position: jax.Array, cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lowest corner [..., 3] (uint32) of the cell that a position is in, and where in it it is."""
    scaled = jnp.clip(position, 0.0, 1.0) * cells
    lowest = jnp.minimum(jnp.floor(scaled), cells.astype(jnp.float32) - 1.0)
    return lowest.astype(jnp.uint32), scaled - lowest


def grid_field(resolution: int, bound_radius: float, density: Density) -> Field:
    """Raw density and albedo logits on a trilinear grid over the bounding cube; no prefilter."""

    def init(key: jax.Array) -> Any:
        return {"grid": 0.1 * jax.random.normal(key, (resolution,) * 3 + (4,))}

    def query(
        params: Any, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> FieldOutput:
        del covariance_diag
        raw = trilinear(params["grid"], mean / bound_radius)
        return FieldOutput(density(raw[..., 0], mean, step), nn.sigmoid(raw[..., 1:]))

    return Field(init, query)
