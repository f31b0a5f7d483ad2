"""Ancestral sampling with a learned variance, and what keeps estimates of the image in range.

A network of Nichol & Dhariwal (2021) predicts, beside the noise, where in each element the variance
of a step lies between its two bounds (their eq. 15). Step for step what diffusers' DDPMScheduler
with variance_type "learned_range" does under IFPipeline.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import classifier_free, rescale
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import Schedule, to_x0


def ddpm_step(
    prior: Prior,
    params: PriorParams,
    z_t: jax.Array,
    index: jax.Array,
    previous: jax.Array,
    cond: Condition,
    uncond: Condition,
    guidance_scale: jax.Array | float,
    guidance_rescale: jax.Array | float,
    fresh_noise: jax.Array,
) -> jax.Array:
    """Takes z_t [B, h, w, c] from timestep `index` to `previous` (scalars; -1: clean).

    The prior must have a `predict_variance`. fresh_noise [B, h, w, c] is standard normal; at index
    0 it has no effect.
    """
    schedule, count = prior.schedule, len(z_t)
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
    t = jnp.broadcast_to(index / (len(schedule.alphas_cumprod) - 1), (count,))
    both = jax.tree.map(
        lambda u, c: jnp.concatenate([jnp.broadcast_to(u, c.shape), c]), uncond, cond
    )
    assert prior.predict_variance is not None
    prediction, share = prior.predict_variance(
        params, jnp.concatenate([z_t, z_t]), jnp.concatenate([t, t]), both
    )
    without, with_text = jnp.split(prediction, 2)
    guided = rescale(
        classifier_free(with_text, without, guidance_scale), with_text, guidance_rescale
    )
    here = alphas_cumprod[index]
    there = jnp.where(previous < 0, 1.0, alphas_cumprod[jnp.maximum(previous, 0)])
    alpha, sigma = jnp.sqrt(here), jnp.sqrt(1.0 - here)
    z = limited(to_x0(guided, z_t, alpha, sigma, schedule.prediction_type), schedule)
    # The posterior of the step, given the clean image (Ho et al., 2020, eq. 7).
    beta = 1.0 - here / there
    mean = jnp.sqrt(there) * beta / (1.0 - here) * z
    mean += jnp.sqrt(here / there) * (1.0 - there) / (1.0 - here) * z_t
    smallest = jnp.log(jnp.maximum((1.0 - there) / (1.0 - here) * beta, 1e-20))
    share = 0.5 * (share[count:] + 1.0)  # as the text makes it: the variance is not guided
    log_variance = share * jnp.log(beta) + (1.0 - share) * smallest
    return mean + jnp.where(index > 0, jnp.exp(0.5 * log_variance), 0.0) * fresh_noise


def limited(z: jax.Array, schedule: Schedule) -> jax.Array:
    """Returns estimates z [B, h, w, c] of what is clean, thresholded or clipped as in sampling."""
    if schedule.thresholding is not None:
        ratio, maximum = schedule.thresholding
        sizes = jnp.abs(z).reshape(len(z), -1)
        bound = jnp.clip(jnp.quantile(sizes, ratio, axis=1), 1.0, maximum)[:, None, None, None]
        return jnp.clip(z, -bound, bound) / bound
    if schedule.clip_sample_range is not None:
        return jnp.clip(z, -schedule.clip_sample_range, schedule.clip_sample_range)
    return z
