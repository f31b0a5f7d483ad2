"""The weight w(t) of a residual."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def timestep_weight(
    name: str, alpha: jax.Array, sigma: jax.Array, cap: float | jax.Array = jnp.inf
) -> jax.Array:
    """Returns w(t), at most `cap`, of the same shape as `alpha` and `sigma`.

    sigma2: the paper's sigma^2. one: the bare noise residual. alpha_over_sigma: the gradient of the
    KL divergence between the noised render and the prior. sigma_over_alpha: the residual as a
    distance in z, since z - x0_hat = (sigma / alpha) (eps_hat - eps).

    Raises:
      ValueError: there is no weight of that name.
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
            raise ValueError(
                f"weighting {name!r} is not sigma2, one, alpha_over_sigma or sigma_over_alpha"
            )
    return jnp.minimum(weight, cap)


def per_view(scalar: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, ...] with as many axes as `like`."""
    return scalar.reshape(scalar.shape + (1,) * (like.ndim - scalar.ndim))
