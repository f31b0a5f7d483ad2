"""Interval Score Matching (LucidDreamer, Liang et al. 2023, arXiv:2311.11284).

    r = w(t) (e_s(z_t, t, y) - e(z_u, u, 0)),    u = t - D

z_u comes from z by deterministic DDIM inversion in strides, z_t from z_u by one more: both lie on
one trajectory, so that what pulls from step to step agrees, and no single noise is averaged over.
The authors weigh by sigma / alpha, with strides of 0.2, D from 0.1 to 0.08 and a scale of 7.5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import classifier_free
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.distillation.inversion import flow, flow_step, times_up_to
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    Query,
    draw_noise,
    finish_score,
    guidance_scale,
    noised,
    predict_noise,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions


def ism(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Interval Score Matching."""

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        def unguided(z_t: jax.Array, t: jax.Array) -> jax.Array:
            return predict_noise(prior, prior_params, [Query(z_t, t, batch.uncond)])[0]

        eps = draw_noise(batch)
        earlier = jnp.maximum(batch.t - interval(batch.step, options), 0.0)
        # Inversion starts at the first time, where z differs from itself by a little noise.
        start = noised(prior, batch.z, jnp.zeros_like(batch.t), eps)
        times = times_up_to(earlier, options.ism_stride)
        z_u = flow(prior.schedule, unguided, start, times)
        render = unguided(z_u, earlier)
        z_t = flow_step(prior.schedule, z_u, render, earlier, batch.t)
        text, empty = predict_noise(
            prior, prior_params, [Query(z_t, batch.t, c) for c in (batch.cond, batch.negative)]
        )
        guided = classifier_free(text, empty, guidance_scale(batch.step, options))
        return finish_score(prior, batch, z_t, eps, guided, guided - render, options)

    return without_params(gradient)


def interval(step: jax.Array, options: DistillationOptions) -> jax.Array:
    """Returns D [], the interval between the two times, at `step`."""
    fallen = jnp.clip(step / options.ism_interval_steps, 0.0, 1.0)
    start, end = options.ism_interval, options.ism_interval_end
    return start + (end - start) * fallen
