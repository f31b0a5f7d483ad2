"""Classifier Score Distillation (Yu et al. 2023, arXiv:2310.19415).

    r = w(t) (e(y) + u e(n) + v e(0)),    u + v = -1

Guidance alone: where SDS at scale s is s (e(y) - e(0)) + (e(0) - eps), this keeps the first term.
With a negative prompt n, u moves part of the subtracted score from the empty prompt to it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    Query,
    draw_noise,
    finish_score,
    noised,
    predict_noise,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions


def csd(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Classifier Score Distillation."""
    uses_negative = bool(options.csd_negative_start or options.csd_negative_end)

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        eps = draw_noise(batch)
        z_t = noised(prior, batch.z, batch.t, eps)
        conditions = [batch.cond, batch.uncond, *([batch.negative] if uses_negative else [])]
        text, empty, *negative = predict_noise(
            prior, prior_params, [Query(z_t, batch.t, condition) for condition in conditions]
        )
        share = negative_share(batch.step, options)
        score = text - empty
        if uses_negative:
            score = text - share * negative[0] - (1.0 - share) * empty
        return finish_score(prior, batch, z_t, eps, text, score, options)

    return without_params(gradient)


def negative_share(step: jax.Array, options: DistillationOptions) -> jax.Array:
    """Returns -u [], the negative prompt's share of what is subtracted, at `step`."""
    risen = jnp.clip(step / options.csd_negative_steps, 0.0, 1.0)
    start, end = options.csd_negative_start, options.csd_negative_end
    return start + (end - start) * risen
