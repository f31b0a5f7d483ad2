"""SDS, draw by draw, on a Gaussian prior p = N(mean, std^2 I).

With V = alpha^2 std^2 + sigma^2 its exact noise estimate is sigma (z_t - alpha mean) / V.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.diffusion.schedule import add_noise, alpha_sigma
from dreamfusion_jax.distillation.objective import clip_pixels, draw_noise
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import OBJECTIVES, DistillationOptions
from dreamfusion_jax.distillation.weighting import timestep_weight
from tests.distillation.conftest import make_batch

_MEAN, _STD = 0.3, 0.4
_COUNT = 100
_KEYS = jax.random.split(jax.random.key(0), _COUNT)


def _gradient(prior, options, batch, params=None):
    own = {"lora": {}, "camera": {}} if options.objective == "vsd" else {}
    return make_objective(prior, options).gradient(own, params or {}, batch)


@functools.partial(jax.jit, static_argnames="weighting")
def _residuals(t, weighting, weight_cap=jnp.inf):
    """One latent z [2, 2, 3] under many draws of the noise."""
    prior = analytic_prior(_MEAN, _STD, image_size=2)
    z = jax.random.normal(jax.random.key(7), (1, 2, 2, 3))
    batch = make_batch(jnp.broadcast_to(z, (_COUNT, 2, 2, 3)), jnp.full(_COUNT, t), _KEYS)
    options = DistillationOptions(1.0, weighting=weighting, weight_cap=weight_cap)
    residual, scalars = _gradient(prior, options, batch)
    return z[0], draw_noise(batch), residual, scalars, *alpha_sigma(prior.schedule, t)


@pytest.mark.parametrize(
    "name, weight",
    [
        ("sigma2", lambda alpha, sigma: sigma**2),
        ("one", lambda alpha, sigma: 1.0),
        ("alpha_over_sigma", lambda alpha, sigma: alpha / sigma),
        ("sigma_over_alpha", lambda alpha, sigma: sigma / alpha),
    ],
)
def test_residual_is_the_weighted_error_of_the_noise(name, weight):
    z, eps, residual, scalars, alpha, sigma = _residuals(0.6, name)
    eps_hat = sigma * (alpha * z + sigma * eps - alpha * _MEAN) / (alpha**2 * _STD**2 + sigma**2)
    expected = weight(alpha, sigma) * (eps_hat - eps)
    chex.assert_trees_all_close(residual, expected, atol=1e-4)
    np.testing.assert_allclose(
        scalars["residual_rms"], np.sqrt(np.mean(np.square(expected))), rtol=1e-4
    )
    chex.assert_tree_all_finite(scalars)
    assert all(scalar.shape == () for scalar in scalars.values())


def test_sigma_over_alpha_is_the_distance_to_the_predicted_x0():
    """z - x0_hat, where the Gaussian's x0_hat is its posterior mean given z_t."""
    z, eps, residual, _, alpha, sigma = _residuals(0.5, "sigma_over_alpha")
    z_t = alpha * z + sigma * eps
    gain = alpha * _STD**2 / (alpha**2 * _STD**2 + sigma**2)
    chex.assert_trees_all_close(residual, z - (_MEAN + gain * (z_t - alpha * _MEAN)), atol=1e-4)


def test_weights_are_capped_and_finite_at_both_ends_of_time():
    alpha, sigma = jnp.array([1.0, 0.6, 0.0]), jnp.array([0.0, 0.8, 1.0])
    weight = timestep_weight("sigma_over_alpha", alpha, sigma, 1.2)
    chex.assert_trees_all_close(weight, jnp.array([0.0, 1.2, 1.2]))
    weight = timestep_weight("alpha_over_sigma", alpha, sigma, 0.8)
    chex.assert_trees_all_close(weight, jnp.array([0.8, 0.75, 0.0]))
    _, _, free, _, _, _ = _residuals(0.9, "sigma_over_alpha")
    _, _, capped, scalars, alpha, sigma = _residuals(0.9, "sigma_over_alpha", 2.0)
    assert sigma / alpha > 2.0
    chex.assert_trees_all_close(capped, free * 2.0 * alpha / sigma, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(scalars["timestep_weight"], 2.0)


def test_clipping_shortens_long_pixels_and_no_others():
    gradient = jnp.array(
        [[[[3.0, 4.0, 0.0], [0.0, 0.3, 0.4]]], [[[0.0, 0.0, 0.0], [0.0, 0.0, -9.0]]]]
    )
    expected = gradient.at[0, 0, 0].divide(5.0).at[1, 0, 1].divide(9.0)
    chex.assert_trees_all_close(clip_pixels(gradient, 1.0), expected)
    z = 5.0 * jax.random.normal(jax.random.key(0), (1, 2, 2, 3))
    batch = make_batch(z, jnp.array([0.5]), _KEYS[:1])
    prior = analytic_prior(_MEAN, _STD, image_size=2)
    free, clipped = (
        _gradient(prior, DistillationOptions(residual_clip=limit), batch)[0] for limit in (0.0, 0.1)
    )
    chex.assert_trees_all_close(clipped, clip_pixels(free, 0.1))
    chex.assert_trees_all_close(jnp.linalg.norm(clipped, axis=-1), jnp.full((1, 2, 2), 0.1))


def test_guidance_and_times_belong_to_their_own_views():
    """A prior that answers with its text: guidance extrapolates, each view has its own alpha."""
    prior = analytic_prior(0.0, 1.0, image_size=2)._replace(
        predict=lambda params, z_t, t, cond: z_t + cond.tokens[:, :, :, None]
    )
    z = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    t = jnp.array([0.3, 0.8])
    cond, negative = Condition(jnp.array([[[2.0]], [[5.0]]])), Condition(jnp.array([[[1.0]]]))
    batch = make_batch(z, t, _KEYS[:2], cond=cond, negative=negative)
    residual, _ = _gradient(prior, DistillationOptions(6.0, weighting="one"), batch)
    eps = draw_noise(batch)
    z_t = add_noise(z, eps, *alpha_sigma(prior.schedule, t))
    guided = z_t + jnp.array([1.0 + 6.0 * 1.0, 1.0 + 6.0 * 4.0])[:, None, None, None]
    chex.assert_trees_all_close(residual, guided - eps, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_gradient_passes_the_prior(objective):
    """Neither its weights nor the latent can be reached through the residual."""
    prior = analytic_prior(_MEAN, _STD, image_size=2)
    scaled = prior._replace(
        predict=lambda params, z_t, t, cond: params["scale"] * prior.predict({}, z_t, t, cond)
    )
    z = jax.random.normal(jax.random.key(0), (1, 2, 2, 3))

    def loss(params, z):
        batch = make_batch(z, jnp.array([0.5]), _KEYS[:1])
        residual, scalars = _gradient(
            scaled, DistillationOptions(objective=objective), batch, params
        )
        return jnp.sum(residual**2) + sum(scalars.values())

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))({"scale": jnp.float32(0.9)}, z)
    assert value > 0.0
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="'snr' is not sigma2"):
        timestep_weight("snr", jnp.ones(1), jnp.ones(1), 1.0)


def test_an_unknown_gradient_is_refused():
    with pytest.raises(ValueError, match="'ddpm' is not one of sds"):
        make_objective(analytic_prior(_MEAN, _STD), DistillationOptions(objective="ddpm"))
