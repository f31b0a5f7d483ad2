"""Hashed grids: interpolation, rows, gradients, and levels that fade in."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.fields import hash_grid
from dreamfusion_jax.nerf.fields.density import Density
from dreamfusion_jax.nerf.fields.hash_grid import HashGrid, hash_features, hash_field
from dreamfusion_jax.runtime.device import compiling_for

_SMALL = HashGrid(levels=3, features=2, log2_rows=10, coarsest=2, finest=8, start_level=2)


def _corners(resolution):
    side = np.arange(resolution + 1, dtype=np.uint32)
    return np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)


def test_resolutions_grow_geometrically_between_the_bounds():
    assert _SMALL.resolutions().tolist() == [2, 4, 8]
    full = HashGrid().resolutions()
    assert full[0] == 16 and full[-1] == 4096 and len(full) == 16
    np.testing.assert_allclose(full[1:] / full[:-1], 256.0 ** (1 / 15), rtol=0.05)


def test_corners_have_rows_of_their_own_where_there_are_enough():
    rows = hash_grid._hash_index(jnp.asarray(_corners(8)), jnp.uint32(8), 1024)
    assert sorted(rows.tolist()) == list(range(729))


def test_finer_corners_share_all_rows_evenly():
    corners = jax.random.randint(jax.random.key(0), (50_000, 3), 0, 4097).astype(jnp.uint32)
    counts = np.bincount(hash_grid._hash_index(corners, jnp.uint32(4096), 1024), minlength=1024)
    assert len(counts) == 1024
    # Poisson counts of mean 49: five standard deviations either side.
    assert counts.min() > 49 - 5 * 7 and counts.max() < 49 + 5 * 7


def test_interpolation_is_exact_on_linear_functions():
    """Tables that hold a linear function of each corner's place, at every level."""
    tables = np.zeros((3, 1024, 2), np.float32)
    slopes, offsets = np.array([[1.0, -2.0], [0.5, 3.0], [4.0, 0.25]]), np.array([0.3, -0.7])
    for level, resolution in enumerate(_SMALL.resolutions()):
        corners = _corners(resolution)
        rows = hash_grid._hash_index(jnp.asarray(corners), jnp.uint32(resolution), 1024)
        tables[level, rows] = corners / resolution @ slopes + offsets
    position = np.random.default_rng(0).uniform(size=(50, 3)).astype(np.float32)
    position[0], position[1] = 0.0, 1.0
    interpolate = jax.jit(lambda x: hash_features(_SMALL, jnp.asarray(tables), x))
    expected = np.repeat((position @ slopes + offsets)[:, None], 3, axis=1)
    np.testing.assert_allclose(interpolate(position), expected, atol=1e-5)
    outside = position.copy()
    outside[1] = 2.0
    np.testing.assert_array_equal(interpolate(outside), interpolate(position))


def test_gradients():
    """By differences, in the tables and in the position (within a cell)."""
    tables = jax.random.normal(jax.random.key(0), (3, 1024, 2))
    position = jnp.array([[0.31, 0.55, 0.9], [0.1, 0.2, 0.7]])

    @jax.jit
    def value(tables, position):
        return jnp.sum(jnp.sin(hash_features(_SMALL, tables, position)))

    chex.assert_numerical_grads(lambda x: value(tables, x), (position,), order=1, atol=1e-2)
    few = jax.random.normal(jax.random.key(1), (5,))
    place = lambda x: value(tables.at[:, :5, 0].set(x), 0.1 * position)  # noqa: E731
    chex.assert_numerical_grads(place, (few,), order=1, atol=1e-2)
    assert jnp.count_nonzero(jax.grad(place)(few)) >= 2


def test_levels_fade_in_one_after_the_other():
    grid = HashGrid(levels=4, start_level=2, start_step=100, level_steps=10)
    for step, weights in (
        (0, [1, 1, 0, 0]),
        (100, [1, 1, 0, 0]),
        (105, [1, 1, 0.5, 0]),
        (112, [1, 1, 1, 0.2]),
        (500, [1, 1, 1, 1]),
    ):
        np.testing.assert_allclose(grid.level_weights(jnp.int32(step)), weights, atol=1e-6)


def test_untrained_field_is_the_blob_and_hidden_levels_add_0():
    density = Density(blob_scale=5.0, blob_radius=0.5, scale=7.0)
    field = hash_field(_SMALL, 8, 1, 2.0, density)
    params = jax.jit(field.init)(jax.random.key(0))
    points = jax.random.uniform(jax.random.key(1), (2, 10, 3), minval=-2.5, maxval=2.5)
    query = jax.jit(field.query)
    at_start, albedo, _ = query(params, points, jnp.zeros_like(points), jnp.int32(0))
    chex.assert_trees_all_close(at_start, density(jnp.zeros((2, 10)), points), rtol=1e-2)
    chex.assert_trees_all_close(albedo, jnp.full((2, 10, 3), 0.5), atol=1e-3)
    finest = {**params, "tables": params["tables"].at[2].set(3.0)}
    chex.assert_trees_all_equal(query(finest, points, points, jnp.int32(0))[:2], (at_start, albedo))
    later = query(finest, points, points, jnp.int32(10_000)).density
    assert jnp.abs(later - at_start).max() > 0.1


def test_a_gpu_looks_up_all_corners_at_once_to_the_same_end():
    tables = jax.random.normal(jax.random.key(0), (3, 1024, 2))
    position = jax.random.uniform(jax.random.key(1), (50, 3))
    both = jax.value_and_grad(lambda x, y: jnp.sum(jnp.sin(hash_features(_SMALL, x, y))), (0, 1))
    one_by_one = both(tables, position)
    with compiling_for("gpu"):
        chex.assert_trees_all_close(both(tables, position), one_by_one, rtol=1e-4, atol=1e-4)
