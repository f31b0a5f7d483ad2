"""The noise schedule and the conversions between what networks predict.

All follows from one line, z_t = alpha z + sigma eps with alpha^2 + sigma^2 = 1 (diffusers'
sqrt(alphas_cumprod) and its complement), and from v = alpha eps - sigma z (Salimans & Ho, 2022).

Letters: t diffusion time in [0, 1], index = round(t (T - 1)) the integer that the network was
trained on; z clean latent, z_t noisy latent, eps noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.errors import PriorError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


class Schedule(NamedTuple):
    """Host-side constants of a diffusion process with T discrete times.

    Attributes:
      alphas_cumprod: [T] float32, alpha^2 at every index; falls from about 1 to about 0.
      prediction_type: what the network predicts: epsilon, v_prediction or sample (that is, z).
      timestep_spacing: how a sampler of fewer steps picks its indices (see sampling.py).
      set_alpha_to_one: whether a sampler's last step lands on the clean latent, or on index 0.
      clip_sample_range: a sampler clips its estimates of z to this, either side of 0; None: not.
    """

    alphas_cumprod: np.ndarray
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    set_alpha_to_one: bool = True
    clip_sample_range: float | None = None


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Reads a diffusers scheduler_config.json (DDIM, DDPM, PNDM, Euler... share these entries)."""
    prediction_type = config.get("prediction_type", "epsilon")
    spacing = config.get("timestep_spacing", "leading")
    if prediction_type not in PREDICTION_TYPES:
        raise PriorError(
            f"scheduler config: prediction_type={prediction_type!r} is not supported, "
            f"only {', '.join(PREDICTION_TYPES)} are."
        )
    if spacing not in SPACINGS:
        raise PriorError(
            f"scheduler config: timestep_spacing={spacing!r} is not supported, "
            f"only {', '.join(SPACINGS)} are."
        )
    if config.get("thresholding"):
        raise PriorError(
            f"scheduler config: thresholding={config['thresholding']!r} is not supported."
        )
    alphas_cumprod = np.cumprod(1.0 - _betas(config))
    if config.get("rescale_betas_zero_snr"):
        if prediction_type == "epsilon":
            raise PriorError(
                "scheduler config: rescale_betas_zero_snr=True is not supported with "
                "prediction_type='epsilon': where there is no signal, noise says nothing of it."
            )
        alphas_cumprod = zero_terminal_snr(alphas_cumprod)
    return Schedule(
        alphas_cumprod.astype(np.float32),
        prediction_type,
        spacing,
        bool(config.get("set_alpha_to_one", True)),
        float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None,
    )


def zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales alpha [T] so that the last is 0 and the first stays (Lin et al., 2024).

    Takes and returns alpha^2, as diffusers keeps it.
    """
    alpha = np.sqrt(alphas_cumprod)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    """[T] variances of the forward process's single steps."""
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"])
    steps = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return np.linspace(start, end, steps)
    if name == "scaled_linear":  # Stable Diffusion's
        return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    if name == "squaredcos_cap_v2":  # the cosine schedule of Nichol & Dhariwal, 2021
        time = np.arange(steps + 1) / steps
        alpha_bar = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise PriorError(
        f"scheduler config: beta_schedule={name!r} is not supported, "
        "only linear, scaled_linear and squaredcos_cap_v2 are."
    )


def time_index(schedule: Schedule, t: jax.Array) -> jax.Array:
    """t in [0, 1] -> the integer timestep, shape as t."""
    last = len(schedule.alphas_cumprod) - 1
    return jnp.clip(jnp.round(t * last).astype(jnp.int32), 0, last)


def alpha_sigma(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """t in [0, 1] -> alpha and sigma, each of the shape of t."""
    alpha_squared = jnp.asarray(schedule.alphas_cumprod)[time_index(schedule, t)]
    return jnp.sqrt(alpha_squared), jnp.sqrt(1.0 - alpha_squared)


def add_noise(z: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """z, eps [B, ...], alpha, sigma [B] -> z_t [B, ...]."""
    return _like(alpha, z) * z + _like(sigma, z) * eps


def velocity(z: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """v = alpha eps - sigma z: what a v_prediction network is trained to predict."""
    return _like(alpha, z) * eps - _like(sigma, z) * z


def to_epsilon(
    prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """The noise that a prediction implies; prediction, z_t [B, ...], alpha, sigma [B]."""
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return alpha * prediction + sigma * z_t
    return (z_t - alpha * prediction) / sigma


def to_x0(
    prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """The clean latent that a prediction implies; prediction, z_t [B, ...], alpha, sigma [B]."""
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return (z_t - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * z_t - sigma * prediction
    return prediction


def to_velocity(
    prediction: jax.Array, z_t: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: str
) -> jax.Array:
    """The velocity that a prediction implies; prediction, z_t [B, ...], alpha, sigma [B]."""
    if prediction_type == "v_prediction":
        return prediction
    alpha, sigma = _like(alpha, z_t), _like(sigma, z_t)
    if prediction_type == "epsilon":
        return (prediction - sigma * z_t) / alpha
    return (alpha * z_t - prediction) / sigma


def _like(coefficient: jax.Array, z: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ...] with as many axes as z; scalars pass through."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (z.ndim - coefficient.ndim))
