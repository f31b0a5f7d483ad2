"""Score Distillation via Inversion (Lukoianov et al. 2024, arXiv:2405.15891).

    r = w(t) alpha / sigma (z - x0_hat(z_t, e_s)),    z_t: DDIM inversion of z up to t

SDS is DDIM sampling with the noise drawn anew in every step; here it is inferred from the render,
so that the estimates of successive steps agree and guidance may be as low as for images. The
authors take 10 steps of inversion under a guidance of -7.5, up to a time a little beyond t, with
some noise after each; t falls linearly, one t a step (--time_schedule=linear), and w = sigma /
alpha, which makes r = z - x0_hat.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import classifier_free
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import Schedule, alpha_sigma, estimate_x0
from dreamfusion_jax.distillation.inversion import flow
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    Query,
    draw_noise,
    draw_uniform,
    finish,
    guidance_scale,
    predict_noise,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.weighting import per_view, timestep_weight


def sdi(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Score Distillation via Inversion."""

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        def guided(z_t: jax.Array, t: jax.Array, scale: jax.Array | float) -> jax.Array:
            queries = [Query(z_t, t, condition) for condition in (batch.cond, batch.negative)]
            text, empty = predict_noise(prior, prior_params, queries)
            return classifier_free(text, empty, scale)

        def invert(z_t: jax.Array, t: jax.Array) -> jax.Array:
            return guided(z_t, t, options.sdi_inversion_guidance)

        def perturb(z_t: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
            # Fresh noise for every stride, told apart by where it ends.
            eps = draw_noise(batch, fold=jnp.round(there * 1e4).astype(jnp.int32))
            spread = options.sdi_eta * ddim_sigma(prior.schedule, here, there)
            return z_t + per_view(spread, z_t) * eps

        beyond = options.sdi_beyond * draw_uniform(batch)
        t = jnp.minimum(batch.t + beyond, 1.0)
        shares = jnp.linspace(0.0, 1.0, options.sdi_steps + 1)
        z_t = flow(
            prior.schedule,
            invert,
            batch.z,
            shares[:, None] * t,
            perturb if options.sdi_eta else None,
        )
        alpha, sigma = alpha_sigma(prior.schedule, t)
        weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)
        eps_hat = guided(z_t, t, guidance_scale(batch.step, options))
        x0 = estimate_x0(z_t, eps_hat, alpha, sigma)
        to_noise = per_view(weight * alpha / jnp.maximum(sigma, 1e-6), z_t)
        eps = (z_t - per_view(alpha, z_t) * batch.z) / per_view(jnp.maximum(sigma, 1e-6), z_t)
        return finish(to_noise * (batch.z - x0), batch, eps, eps_hat, x0, weight, options)

    return without_params(gradient)


def ddim_sigma(schedule: Schedule, here: jax.Array, there: jax.Array) -> jax.Array:
    """Returns the spread [B] of the noise of a DDIM step between two times [B] (eq. 16, eta 1)."""
    (alpha_low, sigma_low), (alpha, sigma) = (
        alpha_sigma(schedule, t) for t in (jnp.minimum(here, there), jnp.maximum(here, there))
    )
    kept = 1.0 - (alpha / jnp.maximum(alpha_low, 1e-6)) ** 2
    return sigma_low / jnp.maximum(sigma, 1e-6) * jnp.sqrt(jnp.maximum(kept, 0.0))
