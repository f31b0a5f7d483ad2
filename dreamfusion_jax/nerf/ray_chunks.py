"""Evaluates a function of an image's rays, one chunk of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.fields.proposal import CHECKPOINT_NAME
from dreamfusion_jax.runtime.device import platform

# Field evaluations per chunk. On a TPU the backward pass of 2^17 points of the paper's lit field
# holds 4.2 GB.
_CHUNK_POINTS_CPU = 8192
_CHUNK_POINTS = 2**17

# Arrays with a leading axis of rays -> outputs with the same leading axis.
ChunkFn = Callable[[Any], Any]


def render_in_chunks(
    branches: Sequence[ChunkFn],
    index: jax.Array,
    rays: Any,
    inactive: jax.Array,
    points_per_ray: int,
) -> Any:
    """Applies `branches[index]` to all rays of an image in chunks.

    On a CPU a chunk's activations stay in the cache, and the backward pass recomputes them instead
    of reading them from memory: forward and backward take about half the time. Inactive rays, whose
    outputs are all 0, come last, so that chunks of nothing else are skipped. On an accelerator a
    training image of any preset is one chunk; larger images take no more memory.

    Args:
      branches: functions with outputs of the same shape; each takes the rays [N, ...] of a chunk.
      index: [] index of the branch to apply.
      rays: arrays [H, W, ...], or None.
      inactive: [H, W] bool; rays whose outputs are known to be 0.
      points_per_ray: field evaluations per ray.

    Returns:
      The outputs, each [H, W, ...].
    """
    size, count = inactive.shape, inactive.size
    rays = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), rays)
    max_points = _CHUNK_POINTS_CPU if platform() == "cpu" else _CHUNK_POINTS
    chunks = -(-count * points_per_ray // max_points)
    # A checkpoint for each branch: forward and backward of a branch are one computation then, and
    # the branches do not hand each other's activations (or as many zeros) through memory.
    branches = [_rematerialized(branch) for branch in branches]
    if chunks == 1:
        outputs = jax.lax.switch(index, branches, rays)
        return jax.tree.map(lambda x: x.reshape(*size, *x.shape[1:]), outputs)
    length = -(-count // chunks)
    active_first = jnp.argsort(inactive.ravel(), stable=True)
    inverse = jnp.argsort(active_first)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, chunks * length - count)] + [(0, 0)] * (x.ndim - 1)
        padded = jnp.pad(x[active_first], padding, mode="edge")
        return padded.reshape(chunks, length, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(chunks * length, *x.shape[2:]).at[inverse].get(unique_indices=True)
        return x.reshape(*size, *x.shape[1:])

    def render_chunk(chunk: tuple[Any, jax.Array]) -> Any:
        rays, inactive = chunk
        shapes = jax.eval_shape(branches[0], rays)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.switch(
            jnp.where(jnp.all(inactive), 0, index + 1), [lambda rays: zeros, *branches], rays
        )

    pieces = jax.tree.map(split, (rays, inactive.ravel()))
    return jax.tree.map(join, jax.lax.map(_rematerialized(render_chunk), pieces))


def _rematerialized(function: ChunkFn) -> ChunkFn:
    # Nothing merges the two passes of a loop or a branch, so no barriers are needed against that.
    policy = jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME)
    return jax.checkpoint(function, prevent_cse=False, policy=policy)
