"""All that changes during a run: the step, the scene's parameters and the optimizer's moments."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax.distillation.objective import Objective
from dreamfusion_jax.nerf.fields.flat_image import image_scene
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.scene import Scene, make_scene


class TrainState(NamedTuple):
    """What a checkpoint holds. There is no random state: keys come from the seed and the step.

    Attributes:
      step: [] int32, steps done.
      params: {"scene": the scene's, "objective": those that the objective trains for itself}.
      opt_state: the optimizer's state.
      skipped: [] int32, steps whose numbers were not finite, and which changed nothing.
      skipped_in_row: [] int32, how many of them were the last ones.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    skipped: jax.Array
    consecutive_skipped: jax.Array

    @property
    def scene_params(self) -> Any:
        return self.params["scene"]


@functools.cache
def build_scene(config: SceneOptions) -> Scene:
    """The scene, or the flat picture, that the configuration describes.

    The same one for the same configuration, so that programs are compiled once for many runs.
    """
    if config.field == "image":
        return image_scene(config.image_size)
    return make_scene(config)


def init_state(
    scene: Scene,
    optimizer: optax.GradientTransformation,
    seed: int,
    objective: Objective | None = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
      objective: None: one without params of its own.
    """
    key = jax.random.key(seed)
    own = objective.init(jax.random.fold_in(key, 1)) if objective else {}
    params = {"scene": scene.init(key), "objective": own}
    step, skipped, consecutive = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(params), skipped, consecutive)
