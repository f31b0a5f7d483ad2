"""Score Distillation Sampling: where a scene's picture and a diffusion prior meet.

DreamFusion (Poole et al. 2023), eq. 3. A rendered latent z is noised to z_t = alpha z + sigma eps;
the frozen prior estimates the noise; and the residual

    r = w(t) (eps_hat(z_t; text, t) - eps)

is pulled back through the renderer as if it were the gradient with respect to z. The Jacobian of
the prior's network is left out, so no derivative of the network is ever taken.

Here stand also the gradients that it simplifies, for study (`--gradient`): SDS without its baseline
-eps, and the diffusion loss's full gradient with that Jacobian in it. What is said of them here is
shown on a Gaussian prior by tests/distillation_theory_test.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import Against, guided_prediction
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


class Noised(NamedTuple):
    """A batch of latents, the noise they are given, and the texts to judge them by.

    Attributes:
      z: [B, h, w, c] latents of the renders.
      t: [B] diffusion times in (0, 1).
      eps: [B, h, w, c] standard normal noise.
      text: [B, L, D] embedding of each view's prompt.
      empty_text: [B, L, D] or [1, L, D] embedding of the empty (or negative) prompt.
      against: what Perp-Neg leads away from, if anything.
    """

    z: jax.Array
    t: jax.Array
    eps: jax.Array
    text: jax.Array
    empty_text: jax.Array
    against: Against | None = None


class Distillation(NamedTuple):
    """How the prior's estimate becomes a gradient.

    Attributes:
      guidance_scale: classifier-free guidance as in diffusers; 1 is none.
      guidance_rescale: share of Lin et al.'s rescaled guidance, in [0, 1].
      weighting: name of w(t), see `timestep_weight`.
      weight_cap: upper bound of w(t).
      residual_clip: greatest norm in any one latent pixel; 0: any.
      gradient: sds | sds_without_baseline | full.
    """

    guidance_scale: float | jax.Array = 6.0
    guidance_rescale: float | jax.Array = 0.0
    weighting: str = "sigma_over_alpha"
    weight_cap: float | jax.Array = jnp.inf
    residual_clip: float = 0.0
    gradient: str = "sds"


def latent_gradient(
    prior: Prior, weights: Any, noised: Noised, options: Distillation
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What `options.gradient` names: a constant cotangent [B, h, w, c] for z, and scalars to log.

    (None of them is the gradient of a loss whose value would mean anything.)
    """
    alpha, sigma = alpha_sigma(prior.schedule, noised.t)
    weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)

    def said_of(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return estimate(prior, weights, noised._replace(z=z), options)

    match options.gradient:
        case "sds":
            eps_hat, x0 = said_of(noised.z)
            gradient = sds_residual(weight, eps_hat, noised.eps)
        case "sds_without_baseline":
            eps_hat, x0 = said_of(noised.z)
            gradient = sds_residual(weight, eps_hat, jnp.zeros_like(eps_hat))
        case "full":
            # The gradient of `diffusion_loss` in z, eq. 2: SDS's residual, twice, pulled back
            # through the network as well.
            eps_hat, pull, x0 = jax.vjp(said_of, noised.z, has_aux=True)
            (gradient,) = pull(2.0 * sds_residual(weight, eps_hat, noised.eps))
        case _:
            raise UserError(
                f"--gradient={options.gradient}: use sds, sds_without_baseline or full."
            )
    if options.residual_clip:
        gradient = clip_pixels(gradient, options.residual_clip)
    scalars = {
        "residual_rms": _rms(gradient),
        "noise_error_rms": _rms(eps_hat - noised.eps),
        "x0_rms": _rms(x0),
        "z_rms": _rms(noised.z),
        "t": jnp.mean(noised.t),
        "timestep_weight": jnp.mean(weight),
    }
    return jax.lax.stop_gradient((gradient, scalars))


def sds_residual(weight: jax.Array, eps_hat: jax.Array, baseline: jax.Array) -> jax.Array:
    """w (eps_hat - baseline), eq. 3: with the baseline eps its mean is w sigma / alpha grad KL.

    A baseline of mean zero changes the variance alone, and eps is the one that lowers it where the
    noise is large. weight [B], eps_hat and baseline [B, ...].
    """
    return _per_view(weight, eps_hat) * (eps_hat - baseline)


def diffusion_loss(weight: jax.Array, eps_hat: jax.Array, eps: jax.Array) -> jax.Array:
    """w |eps_hat - eps|^2 [B], eq. 1: what a diffusion model is trained by."""
    return weight * jnp.sum((eps_hat - eps) ** 2, axis=tuple(range(1, eps.ndim)))


def clip_pixels(gradient: jax.Array, limit: float) -> jax.Array:
    """Shortens each latent pixel's vector [..., c] to a norm of at most `limit`."""
    norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
    return gradient * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))


def entropy_gradient(
    eps: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The two parts of d log q(z_t | z) / dz, z_t = alpha z + sigma eps: along the path of z_t, and
    through q's own mean (appendix A.4).

    Their sum, the entropy's share of the KL divergence's gradient, is zero for every sample, and
    the mean of each is zero. SDS keeps the first, as its baseline.
    """
    path = -_per_view(alpha / sigma, eps) * eps
    return path, -path


def estimate(
    prior: Prior, weights: Any, noised: Noised, options: Distillation
) -> tuple[jax.Array, jax.Array]:
    """The guided estimates of eps and of z, each [B, h, w, c]."""
    alpha, sigma = alpha_sigma(prior.schedule, noised.t)
    z_t = add_noise(noised.z, noised.eps, alpha, sigma)
    prediction = guided_prediction(
        prior,
        weights,
        z_t,
        noised.t,
        noised.text,
        noised.empty_text,
        options.guidance_scale,
        options.guidance_rescale,
        noised.against,
    )
    said = (prediction, z_t, alpha, sigma, prior.schedule.prediction_type)
    return to_epsilon(*said), to_x0(*said)


def _per_view(scalar: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ...] with as many axes as `like`."""
    return scalar.reshape(scalar.shape + (1,) * (like.ndim - scalar.ndim))


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(x**2))
