"""A field on hash grids of many resolutions (Instant-NGP, Mueller et al. 2022).

Level l is a grid of N_l cells a side, N_l = floor(N_0 b^l). Where it has no more corners than the
table has rows, each corner has its own row; finer levels share rows by a hash of the corner's
coordinates. The features of all levels, trilinearly interpolated, are the input of a small MLP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.fields.field import Field, FieldOutput, Head, Params
from dreamfusion_jax.nerf.fields.grid import cell_corners
from dreamfusion_jax.nerf.fields.mip import MipField
from dreamfusion_jax.runtime.device import platform

_PRIMES = np.array([1, 2_654_435_761, 805_459_861], np.uint32)  # Instant-NGP, eq. 4


class HashGrid(NamedTuple):
    """The shape of the tables.

    Attributes:
      levels: number of grids.
      features: numbers per row.
      log2_rows: logarithm of the rows per level.
      coarsest, finest: cells a side of the first and the last level.
      start_level: levels active from the first step on.
      start_step: step at which the next level begins to fade in.
      level_steps: steps over which each further level fades in.
    """

    levels: int = 16
    features: int = 2
    log2_rows: int = 19
    coarsest: int = 16
    finest: int = 4096
    start_level: int = 8
    start_step: int = 2000
    level_steps: int = 500

    def resolutions(self) -> np.ndarray:
        """Returns the cells a side of each level: [levels]."""
        growth = (self.finest / self.coarsest) ** (1.0 / max(self.levels - 1, 1))
        return np.floor(self.coarsest * growth ** np.arange(self.levels) + 1e-6).astype(np.uint32)

    def level_weights(self, step: jax.Array) -> jax.Array:
        """Returns each level's factor [levels] in [0, 1] at `step`: coarse levels come first."""
        elapsed = jnp.maximum(jnp.asarray(step, jnp.float32) - self.start_step, 0.0)
        active = self.start_level + elapsed / self.level_steps
        return jnp.clip(active - np.arange(self.levels), 0, 1)


def hash_features(grid: HashGrid, tables: jax.Array, position: jax.Array) -> jax.Array:
    """Interpolates all levels at positions in [0, 1]^3.

    Args:
      tables: [levels, rows, features].
      position: [N, 3].

    Returns:
      [N, levels, features].
    """

    def level(table: jax.Array, resolution: jax.Array) -> jax.Array:
        corners = cell_corners(position, resolution)
        if platform() == "gpu":
            # All at once: each gather has a scatter into a table of zeros for its derivative.
            corner, weight = map(jnp.stack, zip(*corners, strict=True))
            return jnp.sum(weight * table[_hash_index(corner, resolution, len(table))], axis=0)
        parts = (
            weight * table[_hash_index(corner, resolution, len(table))]
            for corner, weight in corners
        )
        return sum(parts, jnp.float32(0.0))

    return jnp.moveaxis(jax.vmap(level)(tables, jnp.asarray(grid.resolutions())), 0, 1)


def hash_field(
    grid: HashGrid,
    width: int,
    depth: int,
    bound_radius: float,
    head: Head,
    dtype: Any = jnp.float32,
) -> Field:
    """Makes a hash field over the bounding cube, unfiltered.

    `width`, `depth` and `dtype` are its MLP's.
    """
    network = MipField(width, depth, dtype)

    def init(key: jax.Array) -> Params:
        table_key, network_key = jax.random.split(key)
        shape = (grid.levels, 2**grid.log2_rows, grid.features)
        features = jnp.zeros((1, grid.levels * grid.features))
        return {
            "tables": jax.random.uniform(table_key, shape, minval=-1e-4, maxval=1e-4),
            "network": network.init(network_key, features)["params"],
        }

    def query(
        params: Params, mean: jax.Array, covariance_diag: jax.Array, step: jax.Array
    ) -> FieldOutput:
        del covariance_diag
        position = 0.5 * (mean.reshape(-1, 3) / bound_radius + 1.0)
        features = hash_features(grid, params["tables"], position)
        features = features * grid.level_weights(step)[:, None]
        raw = network.apply({"params": params["network"]}, features.reshape(len(position), -1))
        raw = jnp.reshape(raw, (*mean.shape[:-1], 4))
        return head.output(raw, mean, step)

    return Field(init, query)


def _hash_index(corner: jax.Array, resolution: jax.Array, rows: int) -> jax.Array:
    """Returns the table row of each corner [..., 3] uint32: its own if there are rows for all."""
    side = resolution + jnp.uint32(1)
    x, y, z = (corner[..., axis] for axis in range(3))
    own = (x * side + y) * side + z
    hashed = (x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]) % jnp.uint32(rows)
    # In float32, since the cube of 4,097 does not fit into 32 bits; rounding never matters.
    enough = side.astype(jnp.float32) ** 3 <= rows
    return jnp.where(enough, own, hashed)
