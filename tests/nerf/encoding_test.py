"""Frusta against sampled and split cones; encodings against numpy and sampled expectations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.cameras import Rays
from dreamfusion_jax.nerf.encoding import (
    frustum_gaussians,
    integrated_positional_encoding,
    positional_encoding,
)

_DIRECTION = np.array([2.0, -1.0, 2.0], np.float32) / 3.0
_RAY = Rays(jnp.array([0.3, 0.2, -0.1]), jnp.asarray(_DIRECTION), jnp.array([0.3]))


def test_frustum_moments_match_sampled_points():
    near, far, count = 0.5, 2.0, 400_000
    rng = np.random.default_rng(0)
    s = np.cbrt(rng.uniform(near**3, far**3, count))  # The cross-section's area grows as s^2.
    disc_radius = 0.3 * s * np.sqrt(rng.uniform(size=count))
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    across = np.linalg.svd(_DIRECTION[None])[2][1:]
    points = np.asarray(_RAY.origin) + s[:, None] * _DIRECTION
    points = points + disc_radius[:, None] * (
        np.cos(angle)[:, None] * across[0] + np.sin(angle)[:, None] * across[1]
    )
    mean, covariance_diag = frustum_gaussians(_RAY, jnp.array([near, far]))
    np.testing.assert_allclose(mean[0], points.mean(0), atol=3e-3)
    np.testing.assert_allclose(covariance_diag[0], points.var(0), rtol=1e-2)


def test_moments_of_the_parts_add_up_to_the_whole():
    """Volume-weighted first and second moments of two frusta are those of their union."""
    whole_mean, whole_var = frustum_gaussians(_RAY, jnp.array([0.4, 1.6]))
    mean, var = frustum_gaussians(_RAY, jnp.array([0.4, 0.9, 1.6]))
    volume = jnp.diff(jnp.array([0.4, 0.9, 1.6]) ** 3)
    share = (volume / volume.sum())[:, None]
    chex.assert_trees_all_close(jnp.sum(share * mean, 0), whole_mean[0], atol=1e-6)
    second = jnp.sum(share * (var + mean**2), 0)
    chex.assert_trees_all_close(second, whole_var[0] + whole_mean[0] ** 2, atol=1e-5)


def test_thin_distant_and_empty_frusta_stay_positive_and_finite():
    edges = jnp.array([0.0, 0.0, 1e-4, 100.0, 100.001, 100.001])
    moments = frustum_gaussians(_RAY, edges)
    gradient = jax.grad(lambda e: sum(jnp.sum(x) for x in frustum_gaussians(_RAY, e)))(edges)
    chex.assert_tree_all_finite((moments, gradient))
    assert jnp.all(moments[1] >= 0.0)
    axis_ray = Rays(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]), jnp.array([1e-6]))
    _, thin = frustum_gaussians(axis_ray, jnp.array([100.0, 100.25]))
    np.testing.assert_allclose(thin[0, 0], 0.25**2 / 12.0, rtol=1e-3)


def test_encoding_of_a_point_is_sines_of_doubling_frequencies():
    x = jnp.array([[0.7, -0.2, 0.05], [-1.0, 0.9, 0.4]])
    encoded = positional_encoding(x, 1, 8).reshape(2, 7, 2, 3)
    angles = np.asarray(x, np.float64)[:, None] * 2.0 ** np.arange(1, 8)[:, None]
    np.testing.assert_allclose(encoded[:, :, 0], np.sin(angles), atol=5e-5)
    np.testing.assert_allclose(encoded[:, :, 1], np.cos(angles), atol=5e-5)


def test_integrated_encoding_is_the_expectation_of_the_encoding():
    mean, std = np.array([0.4, -0.3, 0.1]), np.array([0.05, 0.3, 0.8])
    points = mean + std * np.random.default_rng(1).standard_normal((200_000, 3))
    expected = positional_encoding(jnp.asarray(points, jnp.float32), 0, 4).mean(0)
    encoded = integrated_positional_encoding(
        jnp.asarray(mean, jnp.float32), jnp.asarray(std**2, jnp.float32), 0, 4
    )
    np.testing.assert_allclose(encoded, expected, atol=6e-3)


def test_encoding_gradients_vanish_in_wide_gaussians():
    mean, variance = jnp.array([0.4, -0.3, 0.1]), jnp.array([0.01, 0.1, 0.3])
    chex.assert_numerical_grads(
        jax.jit(lambda m, v: jnp.sum(integrated_positional_encoding(m, v, 0, 3) ** 2)),
        (mean, variance),
        order=1,
        atol=2e-2,
    )
    wide = jax.jit(
        jax.jacobian(lambda m: integrated_positional_encoding(m, jnp.full(3, 1e6), 0, 6))
    )(mean)
    chex.assert_trees_all_equal(wide, jnp.zeros((36, 3)))
