"""What DreamFusion's derivation claims (Poole et al. 2022, section 3 and appendix A.4), as numbers.

The prior is a Gaussian, p = N(mean, std^2 I), whose noised density is Gaussian too: with
V = alpha^2 std^2 + sigma^2 its noise estimate is eps_hat = sigma (z_t - alpha mean) / V, and

    grad_z KL(q(z_t | z) || p(z_t)) = alpha^2 (z - mean) / V.

Means over N draws are compared within four standard errors, which are small enough to tell a sign
or a factor of 1.2; so are variances, whose standard error for normal draws is sqrt(2 / N) of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.distillation.full_gradient import diffusion_loss
from dreamfusion_jax.distillation.objective import draw_noise, predict_eps_x0
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.sds import entropy_gradient
from tests.distillation.conftest import make_batch

_MEAN, _STD, _COUNT = 0.3, 0.4, 20_000
_TIMES = (0.2, 0.7)  # alpha std is 1.2 sigma at the first, 0.2 sigma at the second
_PRIOR = analytic_prior(_MEAN, _STD, image_size=2)
_Z = jax.random.normal(jax.random.key(7), (2, 2, 3))


def _batch(t):
    """The latent under many draws of the noise."""
    keys = jax.random.split(jax.random.key(0), _COUNT)
    return make_batch(jnp.broadcast_to(_Z, (_COUNT, 2, 2, 3)), jnp.full(_COUNT, t), keys)


@functools.cache
def _draws(t, gradient, weighting="alpha_over_sigma"):
    """[N, 2, 2, 3] float64, and alpha, sigma, V."""
    options = DistillationOptions(1.0, weighting=weighting, objective=gradient)
    objective = make_objective(_PRIOR, options)
    gradients, _ = jax.jit(lambda: objective.gradient({}, {}, _batch(t)))()
    alpha, sigma = map(float, alpha_sigma(_PRIOR.schedule, jnp.float32(t)))
    return np.float64(gradients), alpha, sigma, alpha**2 * _STD**2 + sigma**2


def _assert_mean(draws, expected):
    standard_error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - expected) < 4.0 * standard_error + 1e-6)
    assert np.max(standard_error) < 0.04 * np.abs(expected).max(), "too wide to tell anything"


@pytest.mark.parametrize("gradient", ["sds", "sds_without_baseline"])
@pytest.mark.parametrize("t", _TIMES)
def test_the_mean_of_sds_is_the_gradient_of_the_kl_divergence(t, gradient):
    """With w = alpha / sigma; dropping the baseline keeps the mean."""
    draws, alpha, _, v = _draws(t, gradient)
    _assert_mean(draws, alpha**2 * (np.float64(_Z) - _MEAN) / v)


@pytest.mark.parametrize("t", _TIMES)
def test_the_entropys_two_parts_cancel_and_each_has_mean_zero(t):
    """The parts by autodiff of log q: through z_t with q fixed, and through q with z_t fixed."""
    eps = draw_noise(_batch(t))
    alpha, sigma = alpha_sigma(_PRIOR.schedule, jnp.float32(t))

    def log_q(z_t, z):
        return -0.5 * jnp.sum((z_t - alpha * z) ** 2) / sigma**2

    def parts(eps):
        path = jax.grad(lambda z: log_q(alpha * z + sigma * eps, _Z))(_Z)
        return path, jax.grad(lambda z: log_q(alpha * _Z + sigma * eps, z))(_Z)

    expected = jax.jit(jax.vmap(parts))(eps)
    ours = entropy_gradient(eps, jnp.full(_COUNT, alpha), jnp.full(_COUNT, sigma))
    for part, by_autodiff in zip(ours, expected, strict=True):
        np.testing.assert_allclose(part, by_autodiff, rtol=1e-4, atol=1e-4)
        standard_error = np.float64(part).std(0) / np.sqrt(_COUNT)
        assert np.all(np.abs(np.float64(part).mean(0)) < 4.0 * standard_error)
    np.testing.assert_array_equal(ours[0] + ours[1], 0.0)


@pytest.mark.parametrize("t", _TIMES)
def test_the_baseline_is_the_entropys_path_part(t):
    """KL = E[log q - log p], and the p part of its gradient is SDS without the baseline."""
    eps = draw_noise(_batch(t))
    alpha, sigma = (jnp.full(_COUNT, c) for c in alpha_sigma(_PRIOR.schedule, jnp.float32(t)))
    path, _ = entropy_gradient(eps, alpha, sigma)
    with_baseline, without = (_draws(t, name)[0] for name in ("sds", "sds_without_baseline"))
    np.testing.assert_allclose(without + np.float64(path), with_baseline, atol=1e-4)


@pytest.mark.parametrize("t", _TIMES)
def test_the_baseline_multiplies_the_variance_as_stated(t):
    """By (alpha^2 std^2 / sigma^2)^2: less while alpha std < sigma, more beyond."""
    with_baseline, alpha, sigma, _ = _draws(t, "sds")
    without, *_ = _draws(t, "sds_without_baseline")
    expected = (alpha * _STD / sigma) ** 4
    # The draws are the same, so that the ratio has no error but that of rounding.
    np.testing.assert_allclose(with_baseline.var(0) / without.var(0), expected, rtol=1e-2)
    assert (expected < 1.0) == (alpha * _STD < sigma)


def test_the_times_lie_on_both_sides():
    ratios = [alpha * _STD / sigma for _, alpha, sigma, _ in (_draws(t, "sds") for t in _TIMES)]
    assert ratios[0] > 1.1 and ratios[1] < 0.9


@pytest.mark.parametrize("t", _TIMES)
def test_the_mean_of_the_full_gradient_is_its_closed_form(t):
    """2 w alpha^2 sigma^2 (z - mean) / V^2, here with w = 1."""
    draws, alpha, sigma, v = _draws(t, "full", "one")
    expected = 2.0 * alpha**2 * sigma**2 * (np.float64(_Z) - _MEAN) / v**2
    _assert_mean(draws, expected)


def test_the_full_gradient_is_that_of_the_diffusion_loss():
    """By finite differences of the loss in one coordinate, under the same noise."""
    t, options = 0.4, DistillationOptions(1.0, weighting="sigma2", objective="full")

    @jax.jit
    def mean_loss(z):
        batch = _batch(t)._replace(z=jnp.broadcast_to(z, (_COUNT, 2, 2, 3)))
        _, sigma = alpha_sigma(_PRIOR.schedule, batch.t)
        eps = draw_noise(batch)
        eps_hat, _ = predict_eps_x0(_PRIOR, {}, batch, eps, options)
        return jnp.mean(diffusion_loss(sigma**2, eps_hat, eps))

    step = jnp.zeros_like(_Z).at[1, 0, 2].set(0.5)  # the loss is a parabola: any step is exact
    difference = mean_loss(_Z + step) - mean_loss(_Z - step)
    gradients, *_ = _draws(t, "full", "sigma2")
    np.testing.assert_allclose(gradients.mean(0)[1, 0, 2], difference, rtol=1e-3)
