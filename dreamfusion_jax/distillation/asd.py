"""Asynchronous Score Distillation (Ma et al. 2024, arXiv:2407.02040).

    r = w(t) (e_s(z_t, t, y) - e(z_t', t', y)),    t' = t + U(0, 1) gamma (t - t_min)

Both with the same eps. The noise estimate of the render, for which VSD trains a network, is that of
the frozen one at a later time: there it is closer to what a network trained on the renders would
say. The authors weigh by sigma^2, with gamma = 0.1 and a guidance scale of 7.5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import classifier_free
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import alpha_sigma, estimate_x0
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    Query,
    draw_noise,
    draw_uniform,
    finish,
    noised,
    predict_noise,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.weighting import per_view, timestep_weight


def asd(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Asynchronous Score Distillation: three evaluations a view, nothing to train."""

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        alpha, sigma = alpha_sigma(prior.schedule, batch.t)
        weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)
        eps = draw_noise(batch)
        later = later_time(batch.t, draw_uniform(batch), options)
        z_t, z_later = (noised(prior, batch.z, t, eps) for t in (batch.t, later))
        text, empty, render = predict_noise(
            prior,
            prior_params,
            [
                Query(z_t, batch.t, batch.cond),
                Query(z_t, batch.t, batch.negative),
                Query(z_later, later, batch.cond),
            ],
        )
        guided = classifier_free(text, empty, options.guidance_scale)
        residual = per_view(weight, guided) * (guided - render)
        x0 = estimate_x0(z_t, guided, alpha, sigma)
        return finish(residual, batch, eps, guided, x0, weight, options)

    return without_params(gradient)


def later_time(t: jax.Array, u: jax.Array, options: DistillationOptions) -> jax.Array:
    """Returns t' [B] of t [B] for u [B] in [0, 1), never beyond the last time."""
    return jnp.minimum(t + u * options.asd_gamma * jnp.maximum(t - options.t_min, 0.0), 1.0)
