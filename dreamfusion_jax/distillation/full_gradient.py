"""The diffusion loss's full gradient in z, the network's Jacobian included: what SDS drops.

    L = w(t) |eps_hat(z_t; text, t) - eps|^2    (DreamFusion, Poole et al. 2023, eq. 1 and 2)

For study: it takes a derivative through the U-Net, in time and memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.distillation.objective import (
    Batch,
    Metrics,
    Objective,
    draw_noise,
    finish,
    predict_eps_x0,
    without_params,
)
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.sds import sds_residual
from dreamfusion_jax.distillation.weighting import timestep_weight


def full_gradient(prior: Prior, options: DistillationOptions) -> Objective:
    """Makes the full gradient: SDS's residual, twice, pulled back through the network as well."""

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        alpha, sigma = alpha_sigma(prior.schedule, batch.t)
        weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)
        eps = draw_noise(batch)

        def estimate(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            return predict_eps_x0(prior, prior_params, batch._replace(z=z), eps, options)

        eps_hat, pull, x0 = jax.vjp(estimate, batch.z, has_aux=True)
        (cotangent,) = pull(2.0 * sds_residual(weight, eps_hat, eps))
        return finish(cotangent, batch, eps, eps_hat, x0, weight, options)

    return without_params(gradient)


def diffusion_loss(weight: jax.Array, eps_hat: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns w |eps_hat - eps|^2 [B], eq. 1: what a diffusion model is trained by."""
    return weight * jnp.sum((eps_hat - eps) ** 2, axis=tuple(range(1, eps.ndim)))
