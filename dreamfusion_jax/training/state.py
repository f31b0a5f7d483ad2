"""The state of a run: the step, the scene's parameters and the optimizer's moments."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax.diffusion.priors.prior import PriorParams
from dreamfusion_jax.distillation.objective import Objective, Params
from dreamfusion_jax.nerf.fields.flat_image import image_scene
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.scene import Scene, make_scene


class TrainState(NamedTuple):
    """The contents of a checkpoint. It has no random state: keys follow from seed and step.

    Attributes:
      step: [] int32, steps done.
      params: {"scene": the scene's, "objective": the objective's own}.
      opt_state: the optimizer's state.
      skipped: [] int32, steps that changed nothing because their numbers were not finite.
      consecutive_skipped: [] int32, how many of the last steps were skipped in a row.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    consecutive_skipped: jax.Array

    @property
    def scene_params(self) -> Params:
        """The scene's parameters."""
        return self.params["scene"]


@functools.cache
def build_scene(config: SceneOptions) -> Scene:
    """Builds the scene, or the flat image, that the configuration describes.

    Equal configurations give the same object, so that programs are compiled once for many runs.
    """
    if config.field == "image":
        return image_scene(config.image_size)
    return make_scene(config)


def init_state(
    scene: Scene,
    optimizer: optax.GradientTransformation,
    seed: int,
    objective: Objective | None = None,
    prior_params: PriorParams = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
      objective: None: one without params of its own.
      prior_params: whose shapes an objective with params of its own reads.
    """
    key = jax.random.key(seed)
    own = objective.init(jax.random.fold_in(key, 1), prior_params) if objective else {}
    params = {"scene": scene.init(key), "objective": own}
    step, skipped, consecutive = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(params), skipped, consecutive)


def with_objective_params(
    state: TrainState, optimizer: optax.GradientTransformation, own: Params
) -> TrainState:
    """Returns the state with params of the objective's own, and the optimizer's state from new."""
    params = {**state.params, "objective": own}
    return state._replace(params=params, opt_state=optimizer.init(params))
