"""Schedules of the diffusion times that a step draws from."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def time_range(
    step: jax.Array | int, steps: int, t_min: float, t_max_start: float, t_max_end: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the interval that diffusion times are drawn from at `step` of `steps`.

    Its upper end falls linearly from `t_max_start` to `t_max_end` at the last step: form is found
    at high noise, and detail is added later at low noise.
    """
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps - 1, 1), 0.0, 1.0)
    t_max = t_max_start + (t_max_end - t_max_start) * progress
    return jnp.float32(t_min), t_max
