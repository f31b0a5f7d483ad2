"""Rendering weights, frustum moments and integrated encodings against NumPy in float64.

The references are written from the papers' definitions, not from the code: transmittance as a plain
product, moments as quotients of powers, expectations of each sine by its own formula. Relative
errors are of whole arrays, |a - b| / |b|.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.nerf.cameras import Rays
from dreamfusion_jax.nerf.encoding import frustum_gaussians, integrated_positional_encoding
from dreamfusion_jax.nerf.volume_rendering import compositing_weights

_RNG = np.random.default_rng(0)


def _relative_error(ours, theirs):
    return np.linalg.norm(np.float64(ours) - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_weights_are_opacity_times_transmittance(scale):
    edges = np.sort(_RNG.uniform(0.0, 4.0, (200, 33)), axis=-1).astype(np.float32)
    density = (scale * _RNG.exponential(size=(200, 32))).astype(np.float32)
    expected = np.zeros((200, 32))
    for ray in range(200):
        light = 1.0
        for i in range(32):
            transmitted = np.exp(
                -np.float64(density[ray, i]) * (np.float64(edges[ray, i + 1]) - edges[ray, i])
            )
            expected[ray, i] = light * (1.0 - transmitted)
            light *= transmitted
    assert _relative_error(jax.jit(compositing_weights)(density, edges), expected) < 1e-5


def test_frustum_moments_are_the_quotients_of_powers():
    """mip-NeRF (Barron et al. 2021), appendix A, before its stable rewriting (eq. 7)."""
    start = _RNG.uniform(0.2, 3.0, (200, 1))
    edges = np.cumsum(np.concatenate([start, _RNG.uniform(0.02, 0.3, (200, 16))], -1), axis=-1)
    edges = edges.astype(np.float32)
    direction = _RNG.standard_normal((200, 3))
    direction = (direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype(np.float32)
    origin = _RNG.uniform(-1.0, 1.0, (200, 3)).astype(np.float32)
    radius = _RNG.uniform(0.005, 0.05, (200, 1)).astype(np.float32)
    rays = Rays(*map(jnp.asarray, (origin, direction, radius)))
    mean, covariance_diag = jax.jit(frustum_gaussians)(rays, edges)

    t0, t1 = np.float64(edges[:, :-1]), np.float64(edges[:, 1:])
    power = lambda n: t1**n - t0**n  # noqa: E731
    mean_t = 3.0 * power(4) / (4.0 * power(3))
    variance_t = 3.0 * power(5) / (5.0 * power(3)) - mean_t**2
    variance_r = np.float64(radius) ** 2 * 3.0 * power(5) / (20.0 * power(3))
    d = np.float64(direction)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    expected_mean = origin[:, None] + mean_t[..., None] * d[:, None]
    expected = variance_t[..., None] * d[:, None] ** 2 + variance_r[..., None] * (
        1.0 - d[:, None] ** 2
    )
    assert _relative_error(mean, expected_mean) < 1e-5
    assert _relative_error(covariance_diag, expected) < 1e-5


def test_encodings_are_expected_sines_and_cosines():
    """E[sin(2^l x)] = exp(-4^l variance / 2) sin(2^l mean), each frequency by itself."""
    mean = _RNG.uniform(-1.4, 1.4, (500, 3)).astype(np.float32)
    variance = (10.0 ** _RNG.uniform(-6.0, 0.0, (500, 3))).astype(np.float32)
    ours = integrated_positional_encoding(jnp.asarray(mean), jnp.asarray(variance), 0, 8)
    expected = []
    for level in range(8):
        damping = np.exp(-0.5 * 4.0**level * np.float64(variance))
        angle = 2.0**level * np.float64(mean)
        expected += [damping * np.sin(angle), damping * np.cos(angle)]
    assert _relative_error(ours, np.concatenate(expected, -1)) < 1e-5


def test_densities_up_to_1e30_have_finite_weights_and_gradients():
    density = jnp.array([[0.0, 1e-30, 1e-3, 1.0, 1e3, 1e10, 1e20, 1e30]])
    for row in (density, density[:, ::-1], jnp.full((1, 8), 1e30)):
        edges = jnp.linspace(0.5, 4.0, 9)[None]
        weights, pull = jax.vjp(compositing_weights, row, edges)
        chex.assert_tree_all_finite((weights, pull(jnp.ones_like(weights))))
        np.testing.assert_allclose(weights.sum(), 1.0, atol=1e-6)


def test_variances_up_to_1e10_have_finite_encodings_and_gradients():
    variance = jnp.array([[0.0, 1e-30, 1e-10], [1e-3, 1.0, 1e3], [1e6, 1e8, 1e10]])
    mean = jnp.array([[0.3, -1.0, 0.0], [10.0, 0.5, -0.2], [0.1, 0.2, 0.3]])
    encoded, pull = jax.vjp(lambda *x: integrated_positional_encoding(*x, 0, 8), mean, variance)
    chex.assert_tree_all_finite((encoded, pull(jnp.ones_like(encoded))))
    assert jnp.all(encoded[2].reshape(8, 2, 3) == 0.0)
