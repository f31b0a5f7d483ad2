"""What a step and its parts hold beside their arguments, by XLA's account of the programs for this
machine. Nothing runs, and no weights are read: shapes are enough.

  python -m tests.benchmarks.memory --model=sd --preset=sd --prior=toybox --variant=
  python -m tests.benchmarks.memory --model=toybox --views_per_device=4 --whole

All flags of dreamfusion_jax.main are there, but the networks are those that `--model` names, of
random shapes alone. `--whole` compiles the whole step, which takes minutes for Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry
from dreamfusion_jax.config import Config
from dreamfusion_jax.diffusion.prior import Prior
from dreamfusion_jax.prompts import text_table
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import build_scene, init_state
from dreamfusion_jax.training.step import DeviceInput, make_train_step
from dreamfusion_jax.training.views import text_options
from tests import tpu
from tests.benchmarks.tpu_compile import STEPS, networks_of

_MODEL = flags.DEFINE_enum("model", "sd", STEPS, "The networks: Stable Diffusion 1.5's, or ours.")
_WHOLE = flags.DEFINE_bool("whole", False, "The whole step, too.")

Shape = jax.ShapeDtypeStruct


def temporary_bytes(program: Callable[..., Any], *arguments: Any) -> int:
    """What a program holds at most beside its arguments and results."""
    step = program if hasattr(program, "lower") else jax.jit(program)
    return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def encoder(prior: Prior, weights: Any, views: int) -> int:
    """Encoding the views' pictures, and pulling a residual back to them."""

    def pull_back(weights: Any, image: jax.Array, residual: jax.Array) -> Any:
        z, pull = jax.vjp(lambda x: prior.encode(weights, x, None).astype(jnp.float32), image)
        return pull(residual)

    image = Shape((views, prior.image_size, prior.image_size, 3), jnp.float32)
    return temporary_bytes(
        pull_back, weights, image, Shape((views, *prior.latent_shape), jnp.float32)
    )


def unet(prior: Prior, weights: Any, views: int) -> int:
    """Two predictions a view, with and without the text."""
    z, t = Shape((2 * views, *prior.latent_shape), jnp.float32), Shape((2 * views,), jnp.float32)
    text = jax.eval_shape(lambda: prior.encode_text([""] * 2 * views))
    return temporary_bytes(prior.predict, weights, z, t, text)


def whole(config: Config, prior: Prior, weights: Any) -> int:
    """The training step of one device."""
    scene = build_scene(config.scene)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    options, prompt = text_options(config.train), config.train.prompt
    table = jax.eval_shape(lambda: text_table(prior, prompt, "", options))
    state = jax.eval_shape(lambda: init_state(scene, optimizer, config.train.seed))
    step = make_train_step(config, scene, prior, optimizer, jax.devices()[:1])
    each = Shape((1,), jnp.int32)
    return temporary_bytes(step, DeviceInput(each, each), state, weights, table)


def main() -> int:
    config = configs.config_from_flags(prompt="a red chair")
    prior, weights = tpu.abstract_prior(config, networks_of(_MODEL.value))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    print(f"weights of the prior: {size / 1e6:.1f} MB")
    views = config.train.views_per_device
    for part in (encoder, unet):
        print(
            f"{part.__name__}, {views} views: {part(prior, weights, views) / 1e6:.1f} MB",
            flush=True,
        )
    if _WHOLE.value:
        print(f"whole step, {views} views: {whole(config, prior, weights) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    configs.define_flags()
    entry.run(main)
