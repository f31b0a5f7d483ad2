"""What each objective promises, on a prior whose noise estimate is known in closed form.

Letters as in the objectives' files: e(c) the noise estimate under the condition c, 0 the empty
prompt, n the negative one, y the prompt.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.diffusion.schedule import add_noise, alpha_sigma
from dreamfusion_jax.distillation import asd, csd, inversion, ism, sdi
from dreamfusion_jax.distillation.objective import (
    Query,
    draw_noise,
    guidance_scale,
    predict_noise,
)
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import DistillationOptions
from tests.distillation.conftest import make_batch

MEAN, STD = 0.3, 0.4
GAUSSIAN = analytic_prior(MEAN, STD, image_size=2)
# The same, whose estimate every text shifts by its own number.
WORDED = GAUSSIAN._replace(
    predict=lambda params, z_t, t, cond: (
        GAUSSIAN.predict({}, z_t, t, cond) + cond.tokens[:, :, :, None]
    )
)
TEXT, EMPTY, NEGATIVE = (Condition(jnp.full((3, 1, 1), x)) for x in (0.7, 0.1, -0.4))
Z = jax.random.normal(jax.random.key(7), (3, 2, 2, 3))
T = jnp.array([0.15, 0.4, 0.8])
KEYS = jax.random.split(jax.random.key(0), 3)
BATCH = make_batch(Z, T, KEYS, cond=TEXT, uncond=EMPTY, negative=EMPTY)


def cotangent(name, batch=BATCH, prior=WORDED, **options):
    options = {"weighting": "one", "guidance_scale": 7.5, **options}
    objective = make_objective(prior, DistillationOptions(objective=name, **options))
    residual, metrics = jax.jit(lambda batch: objective.gradient({}, {}, batch))(batch)
    chex.assert_tree_all_finite((residual, metrics))
    assert {"residual_rms", "t", "timestep_weight"} <= set(metrics)
    return residual


def estimates(batch=BATCH):
    """eps, and e(y), e(0), e(n) at z_t."""
    eps = draw_noise(batch)
    z_t = add_noise(batch.z, eps, *alpha_sigma(WORDED.schedule, batch.t))
    queries = [Query(z_t, batch.t, c) for c in (TEXT, EMPTY, NEGATIVE)]
    return eps, *predict_noise(WORDED, {}, queries)


@pytest.mark.parametrize("weighting", ["one", "sigma2"])
def test_sds_is_csd_at_its_scale_and_the_empty_prompt_s_residual(weighting):
    eps, _, empty, _ = estimates()
    _, sigma = alpha_sigma(WORDED.schedule, T)
    weight = {"one": jnp.ones(3), "sigma2": sigma**2}[weighting][:, None, None, None]
    expected = 7.5 * cotangent("csd", weighting=weighting) + weight * (empty - eps)
    chex.assert_trees_all_close(cotangent("sds", weighting=weighting), expected, atol=1e-4)


def test_csd_has_no_noise_left_in_it():
    other = BATCH._replace(key=jax.random.split(jax.random.key(5), 3))
    chex.assert_trees_all_close(cotangent("csd"), cotangent("csd", other), atol=1e-5)


def test_csd_moves_its_subtraction_to_the_negative_prompt():
    options = DistillationOptions(csd_negative_end=0.8, csd_negative_steps=100)
    shares = [csd.negative_share(jnp.int32(step), options) for step in (0, 50, 100, 500)]
    np.testing.assert_allclose(shares, [0.0, 0.4, 0.8, 0.8], rtol=1e-6)
    batch = BATCH._replace(negative=NEGATIVE, step=jnp.int32(50))
    _, text, empty, negative = estimates()
    got = cotangent("csd", batch, csd_negative_end=0.8, csd_negative_steps=100)
    chex.assert_trees_all_close(got, text - 0.4 * negative - 0.6 * empty, atol=1e-5)


def test_nfsd_is_guidance_and_a_direction_to_images():
    batch = BATCH._replace(negative=NEGATIVE)
    _, text, empty, negative = estimates()
    domain = jnp.where((T < 0.2)[:, None, None, None], empty, empty - negative)
    expected = domain + 7.5 * (text - empty)
    chex.assert_trees_all_close(cotangent("nfsd", batch), expected, atol=1e-4)
    # Without a negative prompt of its own it is CSD at that scale, but where the noise is low.
    high = slice(1, None)
    chex.assert_trees_all_close(cotangent("nfsd")[high], 7.5 * cotangent("csd")[high], atol=1e-4)


def test_asd_at_the_same_time_without_guidance_is_nothing():
    still = cotangent("asd", guidance_scale=1.0, asd_gamma=0.0)
    chex.assert_trees_all_close(still, jnp.zeros_like(still), atol=1e-6)
    assert jnp.abs(cotangent("asd", guidance_scale=1.0)).max() > 1e-3


def test_asd_compares_with_a_later_time_under_the_same_noise():
    options = DistillationOptions(asd_gamma=0.1, t_min=0.02)
    later = asd.later_time(T, jnp.array([0.0, 0.5, 1.0]), options)
    np.testing.assert_allclose(later, [0.15, 0.4 + 0.05 * 0.38, 0.8 + 0.1 * 0.78], rtol=1e-5)
    np.testing.assert_allclose(asd.later_time(jnp.ones(1), jnp.ones(1), options), 1.0)


def test_ism_over_no_interval_without_guidance_is_nothing():
    batch = BATCH._replace(cond=EMPTY)
    still = {"guidance_scale": 1.0, "ism_interval": 0.0, "ism_interval_end": 0.0}
    residual = cotangent("ism", batch, **still)
    chex.assert_trees_all_close(residual, jnp.zeros_like(residual), atol=1e-6)
    # What is left with a text is its pull alone: e_s(y) - e(0) = s (y - 0).
    residual = cotangent("ism", **{**still, "guidance_scale": 2.0})
    chex.assert_trees_all_close(residual, jnp.full_like(residual, 2.0 * 0.6), atol=1e-4)


def test_ism_s_interval_shrinks():
    options = DistillationOptions()
    intervals = [ism.interval(jnp.int32(step), options) for step in (0, 750, 1500, 9000)]
    np.testing.assert_allclose(intervals, [0.1, 0.09, 0.08, 0.08], rtol=1e-5)


def test_sdi_stays_at_the_mean_of_the_prior():
    """Inverted, the mean is alpha times itself at every time, whose estimate is the mean again."""
    batch = make_batch(jnp.full_like(Z, MEAN), T, KEYS)
    still = cotangent("sdi", batch, GAUSSIAN, sdi_eta=0.0, weighting="sigma_over_alpha")
    chex.assert_trees_all_close(still, jnp.zeros_like(still), atol=1e-4)


def test_sdi_is_the_way_to_the_estimate_and_random_only_by_eta():
    options = {"sdi_beyond": 0.0, "weighting": "sigma_over_alpha", "weight_cap": 1e3}
    other = BATCH._replace(key=jax.random.split(jax.random.key(5), 3))
    fixed, again = (cotangent("sdi", b, sdi_eta=0.0, **options) for b in (BATCH, other))
    chex.assert_trees_all_close(fixed, again, atol=1e-6)
    assert jnp.abs(cotangent("sdi", **options) - cotangent("sdi", other, **options)).max() > 1e-3
    # On the Gaussian all of the inversion is linear: z goes to alpha mean + gain (z - mean).
    batch = make_batch(Z, T, KEYS)
    got = cotangent("sdi", batch, GAUSSIAN, sdi_eta=0.0, sdi_steps=400, **options)
    alpha, sigma = alpha_sigma(GAUSSIAN.schedule, T)
    total = jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    # The flow keeps (z_t - alpha mean) / std(z_t), and x0_hat is the posterior mean.
    gain = (1.0 - alpha * STD**2 / total**2 * total / STD)[:, None, None, None]
    chex.assert_trees_all_close(got, gain * (Z - MEAN), atol=0.02)


def test_ddim_sigma_is_diffusers_variance():
    import diffusers

    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    got = sdi.ddim_sigma(GAUSSIAN.schedule, jnp.array([0.3]), jnp.array([0.5]))
    low, high = round(0.3 * 999), round(0.5 * 999)
    np.testing.assert_allclose(got[0] ** 2, scheduler._get_variance(high, low), rtol=1e-3)


def test_inversion_and_sampling_undo_each_other():
    def noise(z_t, t):
        return predict_noise(GAUSSIAN, {}, [Query(z_t, t, EMPTY)])[0]

    times = jnp.linspace(0.0, 0.9, 901)[:, None] * jnp.ones(3)
    there = inversion.flow(GAUSSIAN.schedule, noise, Z, times)
    back = inversion.flow(GAUSSIAN.schedule, noise, there, times[::-1])
    chex.assert_trees_all_close(back, Z, atol=0.03)
    alpha, sigma = alpha_sigma(GAUSSIAN.schedule, 0.9)
    spread = jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    chex.assert_trees_all_close((there - alpha * MEAN) / spread, (Z - MEAN) / STD, atol=0.03)


def test_strides_end_at_each_view_s_own_time():
    times = inversion.times_up_to(jnp.array([0.5, 0.05]), 0.2)
    np.testing.assert_allclose(times[:, 0], [0, 0.2, 0.4, 0.5, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(times[:, 1], [0, 0.05, 0.05, 0.05, 0.05, 0.05], atol=1e-6)


def test_guidance_changes_linearly_and_then_stays():
    options = DistillationOptions(10.0, guidance_scale_end=2.0, guidance_anneal_steps=100)
    scales = [guidance_scale(jnp.int32(step), options) for step in (0, 25, 100, 500)]
    np.testing.assert_allclose(scales, [10.0, 8.0, 2.0, 2.0])
    assert guidance_scale(jnp.int32(25), DistillationOptions(10.0)) == 10.0


@pytest.mark.parametrize("name", ["sds", "nfsd", "ism", "sdi", "asd"])
def test_guidance_may_anneal(name):
    batch = BATCH._replace(step=jnp.int32(25))
    annealed = {"guidance_scale": 10.0, "guidance_scale_end": 2.0, "guidance_anneal_steps": 100}
    expected = cotangent(name, batch, guidance_scale=8.0)
    chex.assert_trees_all_close(cotangent(name, batch, **annealed), expected, rtol=1e-4)


def test_one_network_call_answers_all_queries():
    calls = []

    def predict(params, z_t, t, cond):
        calls.append(z_t.shape)
        return WORDED.predict({}, z_t, t, cond)

    prior = WORDED._replace(predict=predict)
    queries = [Query(Z, T, TEXT), Query(2.0 * Z, 0.5 * T, jax.tree.map(lambda x: x[:1], EMPTY))]
    one, other = predict_noise(prior, {}, queries)
    assert calls == [(6, 2, 2, 3)]
    chex.assert_trees_all_close(one, WORDED.predict({}, Z, T, TEXT))
    chex.assert_trees_all_close(other, WORDED.predict({}, 2.0 * Z, 0.5 * T, EMPTY))
