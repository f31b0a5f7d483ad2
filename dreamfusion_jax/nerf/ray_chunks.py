"""A picture's rays, a block of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.fields.proposal import CHECKPOINT_NAME
from dreamfusion_jax.runtime.device import platform

# Points the field is asked for at a time. On a TPU the pull-back of 2^17 points of the paper's lit
# field holds 4.2 GB.
_BLOCK_POINTS_CPU = 8192
_BLOCK_POINTS = 2**17

# Anything with a leading axis of rays -> answers with the same leading axis.
Look = Callable[[Any], Any]


def render_in_chunks(
    looks: Sequence[Look], which: jax.Array, rays: Any, idle: jax.Array, points_per_ray: int
) -> Any:
    """What `looks[which]` says of every ray of a picture, a block of rays at a time.

    On a CPU a block's activations stay in the cache, and the backward pass computes them again
    instead of reading them from memory: forward and backward take about half the time. Idle rays,
    all of whose answers are 0, come last, so that blocks of nothing else can be left out. On an
    accelerator a training picture of any preset is one block; what is larger takes no more memory.

    Args:
      looks: functions of the same answer; each sees a block's rays [N, ...].
      which: [] index of the one to ask.
      rays: arrays [H, W, ...], or None.
      idle: [H, W] rays whose answers are known to be 0.
      points_per_ray: how often the field is asked for each ray.

    Returns:
      The answers, each [H, W, ...].
    """
    picture, count = idle.shape, idle.size
    rays = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), rays)
    points = _BLOCK_POINTS_CPU if platform() == "cpu" else _BLOCK_POINTS
    blocks = -(-count * points_per_ray // points)
    # A checkpoint for each branch: forward and backward of a branch are one computation then, and
    # the branches do not hand each other's activations (or as many zeros) through memory.
    branches = [_recomputed(look) for look in looks]
    if blocks == 1:
        seen = jax.lax.switch(which, branches, rays)
        return jax.tree.map(lambda x: x.reshape(*picture, *x.shape[1:]), seen)
    size = -(-count // blocks)
    busy_first = jnp.argsort(idle.ravel(), stable=True)
    place = jnp.argsort(busy_first)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, blocks * size - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x[busy_first], padding, mode="edge").reshape(blocks, size, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(blocks * size, *x.shape[2:]).at[place].get(unique_indices=True)
        return x.reshape(*picture, *x.shape[1:])

    def look_at_block(block: tuple[Any, jax.Array]) -> Any:
        rays, idle = block
        answer = jax.eval_shape(looks[0], rays)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), answer)
        return jax.lax.switch(
            jnp.where(jnp.all(idle), 0, which + 1), [lambda rays: nothing, *branches], rays
        )

    pieces = jax.tree.map(split, (rays, idle.ravel()))
    return jax.tree.map(join, jax.lax.map(_recomputed(look_at_block), pieces))


def _recomputed(look: Look) -> Look:
    # Nothing merges the two passes of a loop or a branch, so no barriers are needed against that.
    policy = jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME)
    return jax.checkpoint(look, prevent_cse=False, policy=policy)
