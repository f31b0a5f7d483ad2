"""Objectives: pure functions from a batch of rendered latents to their cotangent.

A rendered latent z is noised to z_t = alpha z + sigma eps; the frozen prior estimates the noise;
and an objective computes a constant from it, which is pulled back through the encoder and the
renderer as if it were the gradient with respect to z. Each objective has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import PerpNeg, guided_prediction
from dreamfusion_jax.diffusion.priors.prior import Condition, Pose, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import (
    add_noise,
    alpha_sigma,
    estimate_x0,
    to_epsilon,
    to_x0,
)
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.weighting import per_view, timestep_weight

Params = Any  # a pytree of an objective's own arrays
Metrics = dict[str, jax.Array]  # scalars to log


class Batch(NamedTuple):
    """The B views that one step distills, those of one joint group consecutive.

    Attributes:
      z: [B, h, w, c] latents of the renders.
      t: [B] diffusion times in (0, 1).
      key: [B] typed keys from which an objective draws its noise.
      step: [] int32.
      pose: of each view's camera.
      cond: the prompt with words for each view.
      uncond: the empty prompt.
      negative: the condition to guide away from: the negative prompt, or the empty one.
      view_independent: the prompt without words for views.
      perp_neg: the views that Perp-Neg guides away from, or None.
    """

    z: jax.Array
    t: jax.Array
    key: jax.Array
    step: jax.Array
    pose: Pose
    cond: Condition
    uncond: Condition
    negative: Condition
    view_independent: Condition
    perp_neg: PerpNeg | None = None


class Objective(NamedTuple):
    """A triple of pure functions.

    Attributes:
      init: key, prior params -> the objective's own trainable params; {} for most.
      gradient: params, prior params, batch -> a constant cotangent [B, h, w, c] for z, and metrics.
      loss: params, prior params, batch -> a scalar that the objective's own params descend.
    """

    init: Callable[[jax.Array, PriorParams], Params]
    gradient: Callable[[Params, PriorParams, Batch], tuple[jax.Array, Metrics]]
    loss: Callable[[Params, PriorParams, Batch], jax.Array]


def without_params(
    gradient: Callable[[PriorParams, Batch], tuple[jax.Array, Metrics]],
) -> Objective:
    """Makes an objective that trains nothing of its own."""
    return Objective(
        init=lambda key, prior_params: {},
        gradient=lambda params, prior_params, batch: gradient(prior_params, batch),
        loss=lambda params, prior_params, batch: jnp.zeros(()),
    )


class Query(NamedTuple):
    """One question to the prior about B views: z_t [B, h, w, c], t [B], a condition of B or 1."""

    z_t: jax.Array
    t: jax.Array
    cond: Condition


def draw_noise(batch: Batch, fold: jax.Array | None = None) -> jax.Array:
    """Draws standard normal noise [B, h, w, c], each view's from its own key.

    Args:
      fold: [B] int32 folded into the keys, where a step needs more noise than one.
    """
    keys = batch.key if fold is None else jax.vmap(jax.random.fold_in)(batch.key, fold)
    return jax.vmap(lambda key: jax.random.normal(key, batch.z.shape[1:]))(keys)


def draw_uniform(batch: Batch) -> jax.Array:
    """Draws a number in [0, 1) for each view [B], apart from its noise."""
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(batch.key)


def with_other_keys(batch: Batch, fold: int) -> Batch:
    """Returns the batch with keys for further noise and numbers, other than those of its own."""
    return batch._replace(key=jax.vmap(jax.random.fold_in, (0, None))(batch.key, fold))


def noised(prior: Prior, z: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns z_t [B, h, w, c] at times t [B]."""
    return add_noise(z, eps, *alpha_sigma(prior.schedule, t))


def predict_noise(
    prior: Prior, prior_params: PriorParams, queries: Sequence[Query]
) -> list[jax.Array]:
    """Returns the noise estimate [B, h, w, c] of each query, by ONE network call for all."""
    z_t, t = (jnp.concatenate(x) for x in ([q.z_t for q in queries], [q.t for q in queries]))
    views = len(queries[0].t)

    def join(*leaves: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.broadcast_to(x, (views, *x.shape[1:])) for x in leaves])

    cond = jax.tree.map(join, *(query.cond for query in queries))
    prediction = prior.predict(prior_params, z_t, t, cond)
    alpha, sigma = alpha_sigma(prior.schedule, t)
    eps = to_epsilon(prediction, z_t, alpha, sigma, prior.schedule.prediction_type)
    return jnp.split(eps, len(queries))


def guidance_scale(step: jax.Array, options: DistillationOptions) -> jax.Array | float:
    """Returns the scale [] of classifier-free guidance at `step`; a constant where it stays."""
    start, end = options.guidance_scale, options.guidance_scale_end
    if not end:
        return start
    return start + (end - start) * jnp.clip(step / options.guidance_anneal_steps, 0.0, 1.0)


def predict_eps_x0(
    prior: Prior,
    prior_params: PriorParams,
    batch: Batch,
    eps: jax.Array,
    options: DistillationOptions,
) -> tuple[jax.Array, jax.Array]:
    """Returns the guided estimates of eps and of z, each [B, h, w, c]."""
    levels = alpha_sigma(prior.schedule, batch.t)
    z_t = add_noise(batch.z, eps, *levels)
    return guided_eps_x0(prior, prior_params, batch, z_t, batch.t, levels, options)


def guided_eps_x0(
    prior: Prior,
    prior_params: PriorParams,
    batch: Batch,
    z_t: jax.Array,
    t: jax.Array,
    levels: tuple[jax.Array, jax.Array],
    options: DistillationOptions,
) -> tuple[jax.Array, jax.Array]:
    """Returns the same at z_t [B, h, w, c] and t [B], of these alpha and sigma [B], under the texts
    of `batch`.
    """
    alpha, sigma = levels
    prediction = guided_prediction(
        prior,
        prior_params,
        z_t,
        t,
        batch.cond,
        batch.negative,
        guidance_scale(batch.step, options),
        options.guidance_rescale,
        batch.perp_neg,
        options.x0_rescale,
    )
    args = (prediction, z_t, alpha, sigma, prior.schedule.prediction_type)
    return to_epsilon(*args), to_x0(*args)


def finish_score(
    prior: Prior,
    batch: Batch,
    z_t: jax.Array,
    eps: jax.Array,
    eps_hat: jax.Array,
    score: jax.Array,
    options: DistillationOptions,
) -> tuple[jax.Array, Metrics]:
    """Weighs a score [B, h, w, c] at batch.t by w(t), and finishes it as the cotangent."""
    alpha, sigma = alpha_sigma(prior.schedule, batch.t)
    weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)
    x0 = estimate_x0(z_t, eps_hat, alpha, sigma)
    return finish(per_view(weight, score) * score, batch, eps, eps_hat, x0, weight, options)


def finish(
    gradient: jax.Array,
    batch: Batch,
    eps: jax.Array,
    eps_hat: jax.Array,
    x0: jax.Array,
    weight: jax.Array,
    options: DistillationOptions,
) -> tuple[jax.Array, Metrics]:
    """Clips the cotangent as `options` set, and measures it; both are constants from here on.

    None of the metrics is the value of a meaningful loss.
    """
    if options.residual_clip:
        gradient = clip_pixels(gradient, options.residual_clip)
    metrics = {
        "residual_rms": _rms(gradient),
        "noise_error_rms": _rms(eps_hat - eps),
        "x0_rms": _rms(x0),
        "z_rms": _rms(batch.z),
        "t": jnp.mean(batch.t),
        "timestep_weight": jnp.mean(weight),
    }
    return jax.lax.stop_gradient((gradient, metrics))


def clip_pixels(gradient: jax.Array, limit: float) -> jax.Array:
    """Shortens each latent pixel's vector [..., c] to a norm of at most `limit`."""
    norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
    return gradient * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(x**2))
