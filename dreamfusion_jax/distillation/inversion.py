"""Deterministic DDIM inversion: from a latent to the noise that would sample it.

One step takes z_t to a noisier (or cleaner) time t' along the probability flow (Song et al. 2021,
arXiv:2010.02502, eq. 13):

    z_t' = alpha' x0_hat(z_t) + sigma' eps_hat(z_t)

Inverting and sampling over the same times undo each other as the steps get small.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.schedule import Schedule, add_noise, alpha_sigma
from dreamfusion_jax.distillation.weighting import per_view

# z_t [B, h, w, c], t [B] -> eps_hat [B, h, w, c]
NoiseFn = Callable[[jax.Array, jax.Array], jax.Array]


def flow_step(
    schedule: Schedule, z_t: jax.Array, eps_hat: jax.Array, t: jax.Array, target: jax.Array
) -> jax.Array:
    """Returns z at time `target` [B] along the flow that `eps_hat` points out at z_t and t [B]."""
    alpha, sigma = (per_view(x, z_t) for x in alpha_sigma(schedule, t))
    x0 = (z_t - sigma * eps_hat) / jnp.maximum(alpha, 1e-3)
    return add_noise(x0, eps_hat, *alpha_sigma(schedule, target))


def flow(
    schedule: Schedule,
    noise_fn: NoiseFn,
    z: jax.Array,
    times: jax.Array,
    perturb: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Follows the flow through `times` [K+1, B] from z, which is at times[0].

    A stride in which no view moves calls no network, so shorter ways can be padded with repeats.

    Args:
      noise_fn: the noise estimate.
      perturb: z, times [B] from and to -> z; what happens to z after each stride.
    """

    def stride(z: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        here, there = ends

        def move(z: jax.Array) -> jax.Array:
            moved = flow_step(schedule, z, noise_fn(z, here), here, there)
            if perturb is not None:
                moved = perturb(moved, here, there)
            return jnp.where(per_view(here == there, z), z, moved)

        return jax.lax.cond(jnp.all(here == there), lambda z: z, move, z), None

    return jax.lax.scan(stride, z, (times[:-1], times[1:]))[0]


def times_up_to(t: jax.Array, stride: float) -> jax.Array:
    """Returns times [K+1, B] from 0 to t [B]: multiples of `stride`, then t itself, repeated."""
    multiples = jnp.arange(0.0, 1.0 + stride, stride)
    return jnp.minimum(multiples[:, None], t)
