"""Noise-Free Score Distillation (Katzir et al. 2023, arXiv:2310.17590, eq. 6).

    r = w(t) (d + s (e(y) - e(0))),    d = e(0) where t < 0.2, else e(0) - e(n)

e(0) - eps of SDS is split into a direction d to what images look like and noise, and the noise is
left out. n lists what bad images are like; at low noise e(0) itself is that direction. The authors
run it at a guidance scale s of 7.5.
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
    guidance_scale,
    noised,
    predict_noise,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.weighting import per_view

LOW_NOISE = 0.2  # times below this take e(0) alone


def nfsd(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes Noise-Free Score Distillation; the negative prompt is its n."""

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        eps = draw_noise(batch)
        z_t = noised(prior, batch.z, batch.t, eps)
        text, empty, negative = predict_noise(
            prior,
            prior_params,
            [Query(z_t, batch.t, c) for c in (batch.cond, batch.uncond, batch.negative)],
        )
        domain = jnp.where(per_view(batch.t < LOW_NOISE, z_t), empty, empty - negative)
        score = domain + guidance_scale(batch.step, options) * (text - empty)
        return finish_score(prior, batch, z_t, eps, text, score, options)

    return without_params(gradient)
