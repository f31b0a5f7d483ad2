"""Fits a field's signed distance to distances that are known at points."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamfusion_jax.nerf.scene import Scene

STEPS = 1500
_BATCH = 4096
_LAST_RATE = 0.02  # as a share of the first


def fit_distance(
    scene: Scene, params: Any, points: np.ndarray, distance: np.ndarray, rate: float, seed: int
) -> Any:
    """Returns the scene's params, fitted by Adam to the distances [N] at points [N, 3].

    The loss is the mean absolute error of the field as it is at the first step. Its level function
    is minus the distance.

    Args:
      rate: the first learning rate.
    """
    return _fit(scene, params, jnp.asarray(points), jnp.asarray(distance), rate, seed)


@functools.partial(jax.jit, static_argnames="scene")
def _fit(
    scene: Scene, params: Any, points: jax.Array, distance: jax.Array, rate: jax.Array, seed: int
) -> Any:
    schedule = optax.exponential_decay(1.0, STEPS, _LAST_RATE)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(schedule))

    def loss(params: Any, chosen: jax.Array) -> jax.Array:
        out = scene.query(params, points[chosen], jnp.int32(0))
        return jnp.mean(jnp.abs(scene.level_set.value(out) + distance[chosen]))

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        chosen = jax.random.randint(key, (_BATCH,), 0, len(points))
        updates, state = optimizer.update(jax.grad(loss)(params, chosen), state)
        updates = jax.tree.map(lambda u: rate * u, updates)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(seed), STEPS)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params
