"""A Gaussian prior in closed form: the oracle of the tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.priors.prior import (
    Condition,
    Prior,
    PriorParams,
    resize_bilinear,
)
from dreamfusion_jax.diffusion.schedule import alpha_sigma, schedule_from_config


def analytic_prior(
    mean: float | np.ndarray, std: float, image_size: int = 4, steps: int = 1000
) -> Prior:
    """Makes the prior of images x ~ N(mean, std^2 I), in closed form; its params are {}.

    z_t is Gaussian with variance V = alpha^2 std^2 + sigma^2 around alpha mean, and its expected
    noise is eps_hat = sigma (z_t - alpha mean) / V. Text has no effect.
    """
    schedule = schedule_from_config(
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": steps}
    )

    def predict(
        params: PriorParams, z_t: jax.Array, t: jax.Array, condition: Condition
    ) -> jax.Array:
        alpha, sigma = (c[:, None, None, None] for c in alpha_sigma(schedule, t))
        return sigma * (z_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return Prior(
        image_size,
        (image_size, image_size, 3),
        schedule,
        lambda prompts: Condition(jnp.zeros((len(prompts), 1, 1))),
        lambda params, rgb, key: resize_bilinear(rgb, image_size),
        lambda params, z: jnp.clip(z, 0.0, 1.0),
        predict,
    )
