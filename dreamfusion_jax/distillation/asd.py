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
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    Query,
    draw_noise,
    draw_uniform,
    finish_score,
    guidance_scale,
    noised,
    predict_noise,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions


def asd(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Asynchronous Score Distillation: three evaluations a view, nothing to train."""

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
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
        guided = classifier_free(text, empty, guidance_scale(batch.step, options))
        return finish_score(prior, batch, z_t, eps, guided, guided - render, options)

    return without_params(gradient)


def later_time(t: jax.Array, u: jax.Array, options: DistillationOptions) -> jax.Array:
    """Returns t' [B] of t [B] for u [B] in [0, 1), never beyond the last time."""
    return jnp.minimum(t + u * options.asd_gamma * jnp.maximum(t - options.t_min, 0.0), 1.0)
