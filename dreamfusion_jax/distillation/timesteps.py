"""Schedules of the diffusion times that a step draws from.

Form is found at high noise, and detail is added later at low noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.schedule import Schedule
from dreamfusion_jax.distillation.options import DistillationOptions

# DreamTime's Gaussian over t in [0, 1] (Huang et al. 2023, arXiv:2306.12422, section 4).
DREAMTIME_MEAN, DREAMTIME_STD = 0.5, 0.125


def time_range(
    step: jax.Array | int, steps: int, options: DistillationOptions, schedule: Schedule
) -> tuple[jax.Array, jax.Array]:
    """Returns the interval that diffusion times are drawn from at `step` of `steps`.

    All schedules but "uniform" prescribe one time a step: both ends are the same. They start at
    `t_max_start` and do not increase.
    """
    progress = _progress(step, max(steps - 1, 1))
    match options.time_schedule:
        case "uniform":
            annealed = _progress(step, options.t_anneal_steps or max(steps - 1, 1))
            start = options.t_min_start or options.t_min
            low = start + (options.t_min - start) * annealed
            high = options.t_max_start + (options.t_max_end - options.t_max_start) * annealed
            return low, high
        case "linear":
            t = options.t_max_start + (options.t_max_end - options.t_max_start) * progress
        case "hifa":  # Zhu et al. 2023, arXiv:2305.18766, eq. 9
            t = options.t_max_start - (options.t_max_start - options.t_min) * jnp.sqrt(progress)
        case "dreamtime":
            t = dreamtime(progress, options.t_min, options.t_max_start, schedule)
        case name:
            raise ValueError(f"time schedule {name!r} is not uniform, linear, hifa or dreamtime")
    return t, t


def dreamtime(progress: jax.Array, t_min: float, t_max: float, schedule: Schedule) -> jax.Array:
    """Returns the time [] whose share of the weights above it is `progress` (DreamTime, eq. 5).

    The weights W(t) ~ sigma / alpha exp(-(t - m)^2 / (2 s^2)) say how many steps each time gets.
    """
    last = len(schedule.alphas_cumprod) - 1
    times = np.arange(last + 1) / last
    weight = dreamtime_weights(schedule) * ((times >= t_min) & (times <= t_max))
    above = np.cumsum(weight[::-1])[::-1] / weight.sum()
    # `above` falls with t: the first time, from the top, whose share reaches the progress.
    index = jnp.argmin(jnp.abs(jnp.asarray(above, jnp.float32) - progress))
    return jnp.clip(index / last, t_min, t_max)


def dreamtime_weights(schedule: Schedule) -> np.ndarray:
    """Returns DreamTime's W [T], without a factor."""
    alpha_squared = np.asarray(schedule.alphas_cumprod, np.float64)
    times = np.linspace(0.0, 1.0, len(alpha_squared))
    bell = np.exp(-((times - DREAMTIME_MEAN) ** 2) / (2.0 * DREAMTIME_STD**2))
    return np.sqrt((1.0 - alpha_squared) / np.maximum(alpha_squared, 1e-12)) * bell


def _progress(step: jax.Array | int, steps: int) -> jax.Array:
    return jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
