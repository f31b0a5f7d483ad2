"""DDIM sampling (Song et al., 2021, eq. 12), from deterministic (eta 0) to ancestral (eta 1).

Step for step what diffusers' DDIMScheduler does under StableDiffusionPipeline, so that the same
initial noise gives the same image. A prior that predicts its own variance is sampled ancestrally as
DDPMScheduler does under IFPipeline (ddpm.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.ddpm import ddpm_step, limited
from dreamfusion_jax.diffusion.guidance import guided_prediction
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import Schedule, to_epsilon, to_x0

Sample = Callable[..., np.ndarray]  # what `make_sampler` returns


def ddim_indices(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each step's timestep index, falling, and the index it leads to (-1: clean).

    Raises:
      ValueError: `steps` is not between 1 and the prior's own number.
    """
    total = len(schedule.alphas_cumprod)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps are not between 1 and {total}, the prior's own number")
    if schedule.timestep_spacing == "linspace":
        indices = np.linspace(0, total - 1, steps).round()[::-1].astype(np.int32)
    elif schedule.timestep_spacing == "trailing":
        indices = np.round(np.arange(total, 0, -total / steps)).astype(np.int32) - 1
    else:
        indices = (np.arange(steps) * (total // steps))[::-1].astype(np.int32)
        indices = np.minimum(indices + schedule.steps_offset, total - 1)
    return indices, np.maximum(indices - total // steps, -1)


def ddim_step(
    prior: Prior,
    params: PriorParams,
    z_t: jax.Array,
    index: jax.Array,
    previous: jax.Array,
    cond: Condition,
    uncond: Condition,
    guidance_scale: jax.Array | float,
    guidance_rescale: jax.Array | float = 0.0,
    eta: jax.Array | float = 0.0,
    fresh_noise: jax.Array | float = 0.0,
) -> jax.Array:
    """Takes z_t [B, h, w, c] from timestep `index` to `previous` (scalars; -1: clean).

    Args:
      eta: the share of fresh noise: 0 is deterministic, 1 ancestral sampling (eq. 16).
      fresh_noise: [B, h, w, c] standard normal; not needed where eta is 0.
    """
    schedule = prior.schedule
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
    t = jnp.broadcast_to(index / (len(schedule.alphas_cumprod) - 1), z_t.shape[:1])
    prediction = guided_prediction(
        prior, params, z_t, t, cond, uncond, guidance_scale, guidance_rescale
    )
    alpha_squared = alphas_cumprod[index]
    args = (
        prediction,
        z_t,
        jnp.sqrt(alpha_squared),
        jnp.sqrt(1.0 - alpha_squared),
        schedule.prediction_type,
    )
    z, eps = to_x0(*args), to_epsilon(*args)
    z = limited(z, schedule)
    final = 1.0 if schedule.set_alpha_to_one else alphas_cumprod[0]
    previous_squared = jnp.where(previous < 0, final, alphas_cumprod[jnp.maximum(previous, 0)])
    variance = (1.0 - previous_squared) / (1.0 - alpha_squared)
    variance *= eta**2 * (1.0 - alpha_squared / previous_squared)
    # Rounding could make a zero negative.
    along_eps = jnp.sqrt(jnp.maximum(1.0 - previous_squared - variance, 0.0)) * eps
    return jnp.sqrt(previous_squared) * z + along_eps + jnp.sqrt(variance) * fresh_noise


def ddim_sample(
    prior: Prior,
    params: PriorParams,
    cond: Condition,
    uncond: Condition,
    noise: jax.Array,
    steps: int = 25,
    guidance_scale: jax.Array | float = 6.0,
    guidance_rescale: jax.Array | float = 0.0,
) -> jax.Array:
    """Draws latents [B, h, w, c] for conditions of B.

    Args:
      noise: initial noise [B, h, w, c], or a key to draw it with.
      steps: static. The whole loop is one scan, so this may be jitted.
    """
    if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        noise = jax.random.normal(noise, (len(cond.tokens), *prior.latent_shape))

    def step(z_t: jax.Array, indices: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        scales = guidance_scale, guidance_rescale
        return ddim_step(prior, params, z_t, *indices, cond, uncond, *scales), None

    indices, previous = ddim_indices(prior.schedule, steps)
    z, _ = jax.lax.scan(step, noise, (jnp.asarray(indices), jnp.asarray(previous)))
    return z


def sample_keys(seed: int, samples: int) -> jax.Array:
    """Returns one key a sample [B]; a larger number leaves the first keys as they are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(samples))


def draw_noise(prior: Prior, keys: jax.Array) -> jax.Array:
    """Draws standard normal noise [B, h, w, c], each latent's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, prior.latent_shape))(keys)


def make_sampler(prior: Prior) -> Sample:
    """Makes the function that draws images; it compiles once for each number of samples.

    The host counts the steps, unlike in `ddim_sample`, so that it can report progress. The function
    takes

      params: the prior's.
      cond: conditions of B.
      uncond: of 1.
      keys: [B], one a sample; see `sample_keys`.
      steps: how many DDIM steps.
      scales: of guidance and of its rescaling.
      eta: share of fresh noise in each step; at 1 of a learned variance, where there is one.
      on_step: called after each step.

    and returns images [B, size, size, 3] in [0, 1].
    """
    step, decode = jax.jit(functools.partial(ddim_step, prior)), jax.jit(prior.decode)
    learned_step = jax.jit(functools.partial(ddpm_step, prior))
    fold = jax.vmap(jax.random.fold_in, (0, None))

    def sample(
        params: PriorParams,
        cond: Condition,
        uncond: Condition,
        keys: jax.Array,
        steps: int,
        scales: tuple[float, float],
        eta: float = 0.0,
        on_step: Callable[[], Any] = lambda: None,
    ) -> np.ndarray:
        z, learned = draw_noise(prior, keys), eta == 1.0 and prior.predict_variance is not None
        for index, previous in zip(*ddim_indices(prior.schedule, steps), strict=True):
            fresh_noise = draw_noise(prior, fold(keys, index)) if eta else 0.0
            arguments = params, z, index, previous, cond, uncond, *scales
            if learned:
                z = learned_step(*arguments, fresh_noise)
            else:
                z = step(*arguments, eta, fresh_noise)
            jax.block_until_ready(z)
            on_step()
        return np.asarray(decode(params, z))

    return sample
