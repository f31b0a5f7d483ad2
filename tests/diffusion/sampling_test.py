import functools

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.sampling import ddim_indices, ddim_sample, ddim_step
from dreamfusion_jax.diffusion.schedule import schedule_from_config


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_steps_are_diffusers(spacing, steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    schedule = schedule_from_config(dict(scheduler.config))
    indices, previous = ddim_indices(schedule, steps)
    chex.assert_trees_all_equal(indices, scheduler.timesteps.numpy().astype(np.int32))
    chex.assert_trees_all_equal(previous, np.maximum(indices - 1000 // steps, -1))


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        ddim_indices(schedule_from_config({}), steps)


def test_a_gaussian_prior_turns_noise_into_its_own_samples():
    # The probability flow from N(0, I) to N(mean, std^2 I) is the straight map mean + std noise.
    mean, std = 0.3, 0.5
    prior = analytic_prior(mean, std)
    text = prior.encode_text(["anything"] * 8)
    noise = jax.random.normal(jax.random.key(0), (8, *prior.latent_shape))
    z = jax.jit(lambda noise: ddim_sample(prior, {}, text, text, noise, 200, 3.0))(noise)
    chex.assert_trees_all_close(z, mean + std * noise, atol=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_with_fresh_noise_is_diffusers(eta):
    prior = analytic_prior(0.3, 0.5)
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    scheduler.set_timesteps(20)
    z_t, fresh = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 3)).astype(np.float32)
    text = prior.encode_text(["a"] * 3)
    step = jax.jit(functools.partial(ddim_step, prior))
    for index, previous in ((950, 900), (50, 0), (0, -1)):
        t = jnp.full(3, index / 999)
        eps_hat = np.array(prior.predict({}, jnp.asarray(z_t), t, text))
        theirs = scheduler.step(
            torch.from_numpy(eps_hat),
            index,
            torch.from_numpy(z_t),
            eta,
            variance_noise=torch.from_numpy(fresh) if eta else None,
        ).prev_sample.numpy()
        ours = step({}, z_t, index, previous, text, text, 1.0, 0.0, eta, fresh)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_key_draws_the_noise():
    prior = analytic_prior(0.0, 1.0)
    text = prior.encode_text(["a", "b"])
    key = jax.random.key(3)
    draw = jax.jit(lambda noise: ddim_sample(prior, {}, text, text, noise, 5, 1.0))
    from_key = draw(key)
    noise = jax.random.normal(key, (2, *prior.latent_shape))
    chex.assert_trees_all_close(from_key, draw(noise), atol=1e-6)


SCHEDULERS = {
    "velocity": {},
    "noise": {"prediction_type": "epsilon", "set_alpha_to_one": True},
    "no signal at the end": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "clipped": {"clip_sample": True, "clip_sample_range": 1.5},
}


@pytest.mark.parametrize(
    ("name", "guidance_rescale"),
    [
        ("velocity", 0.7),
        ("noise", 0.0),
        ("no signal at the end", 0.7),
        ("clipped", 0.0),
        pytest.param("velocity", 0.0, marks=pytest.mark.slow),
        pytest.param("noise", 0.7, marks=pytest.mark.slow),
        pytest.param("no signal at the end", 0.0, marks=pytest.mark.slow),
        pytest.param("clipped", 0.7, marks=pytest.mark.slow),
    ],
)
def test_the_pictures_are_those_of_stable_diffusion_pipeline(
    name, guidance_rescale, pipeline_dir, channels_first
):
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, **SCHEDULERS[name]
    )
    prior, params = load_prior(pipeline_dir)
    prior = prior._replace(schedule=schedule_from_config(dict(pipeline.scheduler.config)))
    prompt, negative, steps, scale = "a red chair, back view", "blue", 10, 7.5
    noise = np.random.default_rng(0).standard_normal((2, *prior.latent_shape)).astype(np.float32)
    theirs = pipeline(
        [prompt] * 2,
        negative_prompt=[negative] * 2,
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_rescale=guidance_rescale,
        latents=channels_first(noise),
        output_type="np",
    ).images

    @jax.jit
    def draw(params, text, empty):
        scales = scale, guidance_rescale
        z = ddim_sample(prior, params, text, empty, jnp.asarray(noise), steps, *scales)
        return prior.decode(params, z)

    def ours(prompt: str) -> jax.Array:
        return draw(params, prior.encode_text([prompt] * 2), prior.encode_text([negative]))

    assert theirs.shape == (2, prior.image_size, prior.image_size, 3)
    assert theirs.std() > 0.1, "a saturated image would compare nothing"
    assert np.abs(ours(prompt) - theirs).mean() < 1e-3
    assert np.abs(ours("x") - theirs).mean() > 1e-2
