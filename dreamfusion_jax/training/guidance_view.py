"""What a prior sees of one training view, and what it would make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.priors.prior import PriorParams, resize_bilinear
from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.distillation.inversion import flow
from dreamfusion_jax.distillation.objective import draw_noise, guided_eps_x0, noised
from dreamfusion_jax.distillation.view_prompts import TextTable
from dreamfusion_jax.training.step import Setup, draw_views, make_batch, make_forward

TITLES = ("render", "noised", "one-step estimate", "denoised")
DENOISING_STEPS = 25

# prior params, table, the scene's params, step -> the images of `TITLES`, and t
GuidanceView = Callable[[PriorParams, TextTable, Any, jax.Array], tuple[jax.Array, jax.Array]]


def make_guidance_view(setup: Setup) -> GuidanceView:
    """Makes the compiled function that draws the first view of a step (counted from 0).

    It returns images [4, S, S, 3] in [0, 1]: the render, its latent noised as SDS noises it, the
    guided estimate of the clean latent from there, and what deterministic DDIM of 25 steps denoises
    it to under the same guidance; and the view's time t [].
    """
    options, prior = setup.config.distillation, setup.prior

    @jax.jit
    def guidance_view(
        prior_params: PriorParams, table: TextTable, scene_params: Any, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        draws = draw_views(setup, step, jnp.arange(prior.joint_views))
        (z, _), rendered = make_forward(setup, prior_params, step, draws)(scene_params)
        batch = make_batch(setup, table, draws, z, step)

        def estimate(z_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            levels = alpha_sigma(prior.schedule, t)
            return guided_eps_x0(prior, prior_params, batch, z_t, t, levels, options)

        z_t = noised(prior, z, batch.t, draw_noise(batch))
        times = jnp.linspace(1.0, 0.0, DENOISING_STEPS + 1)[:, None] * batch.t
        denoised = flow(prior.schedule, lambda *at: estimate(*at)[0], z_t, times)
        latents = jnp.stack([z_t[0], estimate(z_t, batch.t)[1][0], denoised[0]])
        render = resize_bilinear(rendered.image[:1], prior.image_size)
        return jnp.concatenate([render, prior.decode(prior_params, latents)]), batch.t[0]

    return guidance_view
