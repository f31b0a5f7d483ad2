"""DDIM sampling (Song et al., 2021, eq. 12), from deterministic (eta 0) to ancestral (eta 1).

Step for step what diffusers' DDIMScheduler does under StableDiffusionPipeline, so that the same
initial noise gives the same picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.guidance import guided_prediction
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior
from dreamfusion_jax.diffusion.schedule import Schedule, to_epsilon, to_x0


def ddim_indices(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The timestep index of every step, falling, and the one that it leads to (-1: clean)."""
    total = len(schedule.alphas_cumprod)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps are not between 1 and {total}, the prior's own number")
    if schedule.timestep_spacing == "linspace":
        indices = np.linspace(0, total - 1, steps).round()[::-1].astype(np.int32)
    elif schedule.timestep_spacing == "trailing":
        indices = np.round(np.arange(total, 0, -total / steps)).astype(np.int32) - 1
    else:
        # StableDiffusionPipeline forces steps_offset=1 upon every scheduler's config.
        indices = (np.arange(steps) * (total // steps))[::-1].astype(np.int32) + 1
        indices = np.minimum(indices, total - 1)
    return indices, np.maximum(indices - total // steps, -1)


def ddim_step(
    prior: Prior,
    weights: Any,
    z_t: jax.Array,
    index: jax.Array,
    previous: jax.Array,
    text: Condition,
    empty_text: Condition,
    guidance_scale: jax.Array | float,
    guidance_rescale: jax.Array | float = 0.0,
    eta: jax.Array | float = 0.0,
    fresh_noise: jax.Array | float = 0.0,
) -> jax.Array:
    """One step of z_t [B, h, w, c] from timestep `index` to `previous` (scalars; -1: clean).

    Args:
      eta: the share of fresh noise: 0 is deterministic, 1 ancestral sampling (eq. 16).
      fresh_noise: [B, h, w, c] standard normal; not needed where eta is 0.
    """
    schedule = prior.schedule
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
    t = jnp.broadcast_to(index / (len(schedule.alphas_cumprod) - 1), z_t.shape[:1])
    prediction = guided_prediction(
        prior, weights, z_t, t, text, empty_text, guidance_scale, guidance_rescale
    )
    alpha_squared = alphas_cumprod[index]
    said = (
        prediction,
        z_t,
        jnp.sqrt(alpha_squared),
        jnp.sqrt(1.0 - alpha_squared),
        schedule.prediction_type,
    )
    z, eps = to_x0(*said), to_epsilon(*said)
    if schedule.clip_sample_range is not None:
        z = jnp.clip(z, -schedule.clip_sample_range, schedule.clip_sample_range)
    final = 1.0 if schedule.set_alpha_to_one else alphas_cumprod[0]
    previous_squared = jnp.where(previous < 0, final, alphas_cumprod[jnp.maximum(previous, 0)])
    variance = (1.0 - previous_squared) / (1.0 - alpha_squared)
    variance *= eta**2 * (1.0 - alpha_squared / previous_squared)
    # Rounding must not make a negative number of what is zero.
    along_eps = jnp.sqrt(jnp.maximum(1.0 - previous_squared - variance, 0.0)) * eps
    return jnp.sqrt(previous_squared) * z + along_eps + jnp.sqrt(variance) * fresh_noise


def ddim_sample(
    prior: Prior,
    weights: Any,
    text: Condition,
    empty_text: Condition,
    noise: jax.Array,
    steps: int = 25,
    guidance_scale: jax.Array | float = 6.0,
    guidance_rescale: jax.Array | float = 0.0,
) -> jax.Array:
    """Draws latents [B, h, w, c] for text [B, L, D].

    Args:
      noise: initial noise [B, h, w, c], or a key to draw it with.
      steps: static. The whole loop is one scan, so this may be jitted.
    """
    if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        noise = jax.random.normal(noise, (len(text.tokens), *prior.latent_shape))

    def step(z_t: jax.Array, indices: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        scales = guidance_scale, guidance_rescale
        return ddim_step(prior, weights, z_t, *indices, text, empty_text, *scales), None

    indices, previous = ddim_indices(prior.schedule, steps)
    z, _ = jax.lax.scan(step, noise, (jnp.asarray(indices), jnp.asarray(previous)))
    return z


def sample_keys(seed: int, samples: int) -> jax.Array:
    """One key a sample [B]: asking for more leaves the first ones as they are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(samples))


def draw_noise(prior: Prior, keys: jax.Array) -> jax.Array:
    """[B, h, w, c] standard normal, each latent from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, prior.latent_shape))(keys)


def make_sampler(
    prior: Prior,
    steps: int,
    scales: tuple[float, float],
    on_step: Callable[[], Any],
    eta: float = 0.0,
) -> Callable[[Any, Condition, Condition, jax.Array], np.ndarray]:
    """weights, text [B, L, D], empty_text [1, L, D], keys [B] -> pictures [B, size, size, 3].

    `scales` are those of guidance and of its rescaling; `eta` is the share of fresh noise. The host
    counts the steps, unlike in `ddim_sample`, so that it can show how far it is.
    """
    step, decode = jax.jit(functools.partial(ddim_step, prior)), jax.jit(prior.decode)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    indices, previous = ddim_indices(prior.schedule, steps)

    def draw(weights: Any, text: Condition, empty_text: Condition, keys: jax.Array) -> np.ndarray:
        z = draw_noise(prior, keys)
        for here, there in zip(indices, previous, strict=True):
            fresh = draw_noise(prior, fold(keys, here)) if eta else 0.0
            z = step(weights, z, here, there, text, empty_text, *scales, eta, fresh)
            jax.block_until_ready(z)
            on_step()
        return np.asarray(decode(weights, z))

    return draw
