"""All that changes during a run: the step, the scene's parameters and the optimiser's moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax.config import SceneConfig
from dreamfusion_jax.nerf.scene import Scene, SceneOptions, make_scene


class TrainState(NamedTuple):
    """What a checkpoint holds. There is no random state: keys come from the seed and the step.

    Attributes:
      step: [] int32, steps done.
      params: the scene's parameters.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def build_scene(config: SceneConfig) -> Scene:
    """The scene that the configuration describes."""
    return make_scene(SceneOptions(**vars(config)))


def init_state(scene: Scene, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    params = scene.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
