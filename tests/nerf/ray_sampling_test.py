"""Where rays are sampled: bounds, strata, and the proposal's histogram."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.nerf.cameras import Rays
from dreamfusion_jax.nerf.ray_sampling import (
    inverse_cdf,
    resample_edges,
    sphere_bounds,
    uniform_edges,
)


def _shifts(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-0.5, maxval=0.5)


@pytest.mark.parametrize(
    "origin, near, far",
    [
        ((3.0, 0.0, 0.0), 1.5, 4.5),  # through the center
        ((3.0, 0.9, 1.2), 3.0, 3.0),  # just touching: nothing inside
        ((3.0, 0.0, 0.9), 1.8, 4.2),  # a chord: 1.5^2 = 0.9^2 + 1.2^2
        ((0.5, 0.0, 0.0), 0.0, 2.0),  # from inside
    ],
)
def test_sphere_bounds(origin, near, far):
    rays = Rays(jnp.array(origin), jnp.array([-1.0, 0.0, 0.0]), jnp.array([0.01]))
    result = sphere_bounds(rays, 1.5)
    chex.assert_trees_all_close(result, (jnp.array([near]), jnp.array([far])), atol=2e-3)


@pytest.mark.parametrize("origin", [(3.0, 2.0, 0.0), (-3.0, 0.0, 0.0)])
def test_a_ray_that_misses_has_no_length(origin):
    """Beside the sphere, and with the sphere behind."""
    rays = Rays(jnp.array(origin), jnp.array([-1.0, 0.0, 0.0]), jnp.array([0.01]))
    near, far = sphere_bounds(rays, 1.0)
    chex.assert_trees_all_equal(near, far)
    edges = uniform_edges(near, far, 4, _shifts(0, 3))
    fine = resample_edges(edges, jnp.zeros(4), 3, jax.random.uniform(jax.random.key(1), (3,)))
    chex.assert_trees_all_equal(fine, jnp.broadcast_to(near, (4,)))


def test_uniform_edges_are_even_and_ordered_under_jitter():
    near, far = jnp.full((500, 1), 2.0), jnp.full((500, 1), 4.0)
    even = jnp.linspace(2.0, 4.0, 9)
    chex.assert_trees_all_close(uniform_edges(near, far, 8, None)[0], even, atol=1e-6)
    edges = uniform_edges(near, far, 8, _shifts(0, 500, 7))
    chex.assert_trees_all_close((edges[:, :1], edges[:, -1:]), (near, far))
    assert jnp.all(jnp.diff(edges) > 0.0)
    offset = (edges - even)[:, 1:-1] / 0.25
    assert -0.5 <= offset.min() < -0.49 and 0.49 < offset.max() <= 0.5
    np.testing.assert_allclose(offset.mean(0), 0.0, atol=0.05)


def test_inverse_cdf_is_numpys_interpolation():
    rng = np.random.default_rng(0)
    edges = np.sort(rng.uniform(size=(5, 9)), -1).astype(np.float32)
    probability = rng.dirichlet(np.ones(8), 5).astype(np.float32)
    u = np.sort(rng.uniform(size=(5, 7)), -1).astype(np.float32)
    result = inverse_cdf(jnp.asarray(edges), jnp.asarray(probability), jnp.asarray(u))
    for i in range(5):
        cdf = np.concatenate([[0.0], np.cumsum(probability[i])])
        np.testing.assert_allclose(result[i], np.interp(u[i], cdf, edges[i]), atol=1e-5)


@pytest.mark.parametrize("place", [None, jax.random.uniform(jax.random.key(0), (2000,))])
def test_resampling_follows_the_histogram(place):
    """With unequal bins: the share of the intervals in a bin is its weight, not its length."""
    edges = jnp.array([1.0, 1.1, 1.5, 1.6, 2.0])
    weights = jnp.array([0.1, 0.4, 0.3, 0.2])
    fine = resample_edges(edges, weights, 2000, place, padding=0.0)
    middle = 0.5 * (fine[1:] + fine[:-1])
    share = np.histogram(middle, np.asarray(edges))[0] / 2000
    np.testing.assert_allclose(share, weights, atol=2e-3)


def test_resampled_intervals_never_cross_nor_leave_the_ray():
    keys = jax.random.split(jax.random.key(3))
    weights = jax.random.uniform(keys[0], (300, 16)) ** 20  # a few spikes, mostly nothing
    weights = weights.at[:20].set(0.0).at[20:40, 5].set(1e6)
    edges = uniform_edges(jnp.full((300, 1), 1.7), jnp.full((300, 1), 3.7), 16, _shifts(4, 300, 15))
    place = jax.random.uniform(keys[1], (300, 12))
    fine = jax.jit(resample_edges, static_argnums=2)(edges, weights, 12, place)
    chex.assert_tree_all_finite(fine)
    assert jnp.all(jnp.diff(fine) >= 0.0)
    assert jnp.all((fine >= edges[:, :1]) & (fine <= edges[:, -1:]))


def test_padding_keeps_a_share_for_what_the_proposal_thinks_empty():
    edges, weights = jnp.linspace(0.0, 1.0, 11), jnp.zeros(10).at[7].set(1.0)
    fine = resample_edges(edges, weights, 1100, None, padding=0.01)
    middle = 0.5 * (fine[1:] + fine[:-1])
    share = np.histogram(middle, np.asarray(edges))[0] / 1100
    np.testing.assert_allclose(share[:7], 0.01 / 1.1, atol=2e-3)


def test_empty_space_around_an_object_is_left_out():
    """A narrow object gets narrow intervals: none reaches from it to the ends of the ray."""
    edges = jnp.linspace(0.0, 4.0, 41)
    weights = jnp.zeros(40).at[20].set(1.0)  # between 2.0 and 2.1
    fine = resample_edges(edges, weights, 8, None, padding=0.0)
    np.testing.assert_allclose([fine[0], fine[-1]], [2.0, 2.1], atol=1e-5)


def test_no_gradient_reaches_the_proposal():
    edges = jnp.linspace(0.0, 1.0, 5)
    gradient = jax.grad(lambda w: jnp.sum(resample_edges(edges, w, 3, None) ** 2))(jnp.ones(4))
    chex.assert_trees_all_equal(gradient, jnp.zeros(4))
