"""Score Distillation Sampling (DreamFusion, Poole et al. 2023, eq. 3), and what it drops.

    r = w(t) (eps_hat(z_t; text, t) - eps),    z_t = alpha z + sigma eps

The Jacobian of the prior's network is left out, so no derivative of the network is ever taken.
tests/distillation/theory_test.py proves on a Gaussian prior what is claimed here.
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
from dreamfusion_jax.distillation.weighting import per_view, timestep_weight


def sds(prior: Prior, options: DistillationOptions, with_baseline: bool = True) -> Objective:
    """Makes Score Distillation Sampling.

    Args:
      with_baseline: False leaves out the -eps, for study: the mean stays, the variance does not.
    """

    def gradient(prior_params: PriorParams, batch: Batch) -> tuple[jax.Array, Metrics]:
        alpha, sigma = alpha_sigma(prior.schedule, batch.t)
        weight = timestep_weight(options.weighting, alpha, sigma, options.weight_cap)
        eps = draw_noise(batch)
        eps_hat, x0 = predict_eps_x0(prior, prior_params, batch, eps, options)
        baseline = eps if with_baseline else jnp.zeros_like(eps)
        residual = sds_residual(weight, eps_hat, baseline)
        return finish(residual, batch, eps, eps_hat, x0, weight, options)

    return without_params(gradient)


def sds_residual(weight: jax.Array, eps_hat: jax.Array, baseline: jax.Array) -> jax.Array:
    """Returns w (eps_hat - baseline), eq. 3: with the baseline eps its mean is w sigma / alpha
    grad KL.

    A baseline of mean zero changes the variance alone, and eps is the one that lowers it where the
    noise is large. weight [B], eps_hat and baseline [B, ...].
    """
    return per_view(weight, eps_hat) * (eps_hat - baseline)


def entropy_gradient(
    eps: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the two parts of d log q(z_t | z) / dz, z_t = alpha z + sigma eps: along the path of
    z_t, and through q's own mean (appendix A.4).

    Their sum, the entropy's share of the KL divergence's gradient, is zero for every sample, and
    the mean of each is zero. SDS keeps the first, as its baseline.
    """
    path = -per_view(alpha / sigma, eps) * eps
    return path, -path
