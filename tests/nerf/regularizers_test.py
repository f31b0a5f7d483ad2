"""Closed forms of the regularizers, and who learns from them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.regularizers import (
    distortion_loss,
    entropy_loss,
    interlevel_loss,
    mean_over_hits,
    opacity_loss,
    orientation_loss,
)


def test_opacity():
    result = opacity_loss(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(result, [0.1, np.sqrt(1.01)], rtol=1e-6)


def test_entropy_is_largest_in_doubt_and_finite_at_the_ends():
    np.testing.assert_allclose(entropy_loss(jnp.array(0.5)), np.log(2.0), rtol=1e-6)
    p = 0.9
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(entropy_loss(jnp.array(p)), expected, rtol=1e-5)
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(entropy_loss(ends), 0.0, atol=2e-4)
    chex.assert_tree_all_finite(jax.grad(lambda p: jnp.sum(entropy_loss(p)))(ends))


def test_orientation_counts_only_normals_that_face_away():
    weights = jnp.array([0.5, 0.25])
    direction = jnp.array([1.0, 0.0, 0.0])
    normals = jnp.array([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(orientation_loss(weights, normals, direction), 0.5 * 0.36, rtol=1e-6)
    gradient = jax.grad(orientation_loss)(weights, normals, direction)
    chex.assert_trees_all_equal(gradient, jnp.zeros(2))


def test_a_mean_over_hits_ignores_how_much_of_the_image_is_empty():
    per_ray, opacity = jnp.array([1.0, 3.0, 0.0, 0.0]), jnp.array([0.5, 0.02, 0.0, 1e-4])
    np.testing.assert_allclose(mean_over_hits(per_ray, opacity), 2.0)
    wider = (jnp.pad(per_ray, (0, 60)), jnp.pad(opacity, (0, 60)))
    np.testing.assert_allclose(mean_over_hits(*wider), 2.0)
    np.testing.assert_allclose(mean_over_hits(jnp.zeros(3), jnp.zeros(3)), 0.0)


def test_distortion_of_one_interval():
    loss = distortion_loss(jnp.array([0.6]), jnp.array([2.0, 2.5]))
    np.testing.assert_allclose(loss, 0.6**2 * 0.5 / 3.0, rtol=1e-6)


def test_distortion_is_the_double_sum():
    rng = np.random.default_rng(0)
    edges = np.sort(rng.uniform(2.0, 4.0, (6, 9)), -1).astype(np.float32)
    weights = rng.uniform(size=(6, 8)).astype(np.float32)
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    apart = np.abs(middle[:, :, None] - middle[:, None, :])
    expected = np.einsum("ri,rj,rij->r", weights, weights, apart)
    expected = expected + np.sum(weights**2 * np.diff(edges), -1) / 3.0
    result = distortion_loss(jnp.asarray(weights), jnp.asarray(edges))
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_interlevel_is_zero_where_the_proposal_is_a_bound():
    edges, weights = jnp.array([0.5, 1.5, 2.0]), jnp.array([0.4, 0.2])
    proposal_edges = jnp.array([0.0, 1.0, 2.0, 3.0])
    # The first fine interval overlaps bins 0 and 1, the second only bin 1 (it ends where 2 begins).
    enough = jnp.array([0.2, 0.2, 0.0])
    assert interlevel_loss(edges, weights, proposal_edges, enough) == 0.0
    lacking = jnp.array([0.2, 0.1, 9.0])
    expected = 0.1**2 / 0.4 + 0.1**2 / 0.2
    result = interlevel_loss(edges, weights, proposal_edges, lacking)
    np.testing.assert_allclose(result, expected, rtol=1e-3)


def test_interlevel_raises_the_proposal_alone():
    edges, proposal_edges = jnp.array([0.5, 1.5, 2.0]), jnp.array([0.0, 1.0, 2.0, 3.0])
    weights, lacking = jnp.array([0.4, 0.2]), jnp.array([0.2, 0.1, 0.1])
    fine, proposal = jax.grad(interlevel_loss, (1, 3))(edges, weights, proposal_edges, lacking)
    chex.assert_trees_all_equal(fine, jnp.zeros(2))
    assert proposal[0] < 0.0 and proposal[1] < 0.0 and proposal[2] == 0.0
