"""All that changes during a run: the step, the scene's parameters and the optimiser's moments."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax.nerf.image import image_scene
from dreamfusion_jax.nerf.scene import Scene, SceneOptions, make_scene
from dreamfusion_jax.settings import SceneConfig


class TrainState(NamedTuple):
    """What a checkpoint holds. There is no random state: keys come from the seed and the step.

    Attributes:
      step: [] int32, steps done.
      params: the scene's parameters.
      opt_state: the optimiser's state.
      skipped: [] int32, steps whose numbers were not finite, and which changed nothing.
      skipped_in_row: [] int32, how many of them were the last ones.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    skipped: jax.Array
    skipped_in_row: jax.Array


@functools.cache
def build_scene(config: SceneConfig) -> Scene:
    """The scene, or the flat picture, that the configuration describes.

    The same one for the same configuration, so that programs are compiled once for many runs.
    """
    if config.field == "image":
        return image_scene(config.image_size)
    options = {name: getattr(config, name) for name in SceneOptions._fields}
    return make_scene(SceneOptions(**options))


def init_state(scene: Scene, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    params = scene.init(jax.random.key(seed))
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(params), skipped, in_row)
