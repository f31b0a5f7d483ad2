"""Score Distillation Sampling: where a scene's picture and a diffusion prior meet.

DreamFusion (Poole et al. 2023), eq. 3. A rendered latent z is noised to z_t = alpha z + sigma eps;
the frozen prior estimates the noise; and the residual

    r = w(t) (eps_hat(z_t; text, t) - eps)

is pulled back through the renderer as if it were the gradient with respect to z. The Jacobian of
the prior's network is left out, so no derivative of the network is ever taken.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import guided_prediction
from dreamfusion_jax.diffusion.prior import Prior
from dreamfusion_jax.diffusion.schedule import add_noise, alpha_sigma, to_epsilon, to_x0
from dreamfusion_jax.errors import UserError


def time_range(
    step: jax.Array | int, steps: int, t_min: float, t_max_start: float, t_max_end: float
) -> tuple[jax.Array, jax.Array]:
    """The interval that diffusion times are drawn from at `step` of `steps`.

    Its upper end falls linearly from `t_max_start` to `t_max_end` at the last step: form is found
    at high noise, and detail is added later at low noise.
    """
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps - 1, 1), 0.0, 1.0)
    t_max = t_max_start + (t_max_end - t_max_start) * progress
    return jnp.float32(t_min), t_max


def timestep_weight(
    name: str, alpha: jax.Array, sigma: jax.Array, cap: float | jax.Array = jnp.inf
) -> jax.Array:
    """w(t), at most `cap`, of the same shape as `alpha` and `sigma`.

    sigma2: the paper's sigma^2. one: the bare noise residual. alpha_over_sigma: the gradient of the
    KL divergence between the noised render and the prior. sigma_over_alpha: the residual as a
    distance in z, since z - x0_hat = (sigma / alpha) (eps_hat - eps).
    """
    match name:
        case "sigma2":
            weight = sigma**2
        case "one":
            weight = jnp.ones_like(sigma)
        case "alpha_over_sigma":
            weight = alpha / jnp.maximum(sigma, 1e-6)
        case "sigma_over_alpha":
            weight = sigma / jnp.maximum(alpha, 1e-6)
        case _:
            raise UserError(
                f"--weighting={name}: use sigma2, one, alpha_over_sigma or sigma_over_alpha."
            )
    return jnp.minimum(weight, cap)


def sds_residual(
    prior: Prior,
    weights: Any,
    z: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    text: jax.Array,
    empty_text: jax.Array,
    guidance_scale: float | jax.Array,
    weighting: str = "sigma_over_alpha",
    weight_cap: float | jax.Array = jnp.inf,
    guidance_rescale: float | jax.Array = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The SDS residual of a batch of rendered latents: a constant cotangent for `z`.

    Args:
      prior: the frozen prior.
      weights: its parameters, an argument so that they are placed on each device once.
      z: [B, h, w, c] latents of the renders.
      t: [B] diffusion times in (0, 1).
      eps: [B, h, w, c] standard normal noise.
      text: [B, L, D] embedding of each view's prompt.
      empty_text: [B, L, D] or [1, L, D] embedding of the empty (or negative) prompt.
      guidance_scale: classifier-free guidance as in diffusers; 1 is none.
      weighting: name of w(t), see `timestep_weight`.
      weight_cap: upper bound of w(t).
      guidance_rescale: share of Lin et al.'s rescaled guidance, in [0, 1].

    Returns:
      [B, h, w, c] residual, its gradient stopped, and scalars to be logged (the residual is not the
      gradient of a loss with a meaningful value).
    """
    alpha, sigma = alpha_sigma(prior.schedule, t)
    z_t = add_noise(z, eps, alpha, sigma)
    prediction = guided_prediction(
        prior, weights, z_t, t, text, empty_text, guidance_scale, guidance_rescale
    )
    said = (prediction, z_t, alpha, sigma, prior.schedule.prediction_type)
    eps_hat, x0 = to_epsilon(*said), to_x0(*said)
    weight = timestep_weight(weighting, alpha, sigma, weight_cap)
    residual = jax.lax.stop_gradient(_per_view(weight, z) * (eps_hat - eps))
    scalars = {
        "residual_rms": _rms(residual),
        "noise_error_rms": _rms(eps_hat - eps),
        "x0_rms": _rms(x0),
        "z_rms": _rms(z),
        "t": jnp.mean(t),
        "timestep_weight": jnp.mean(weight),
    }
    return residual, jax.lax.stop_gradient(scalars)


def _per_view(scalar: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ...] with as many axes as `like`."""
    return scalar.reshape(scalar.shape + (1,) * (like.ndim - scalar.ndim))


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(x**2))
