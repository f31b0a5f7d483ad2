"""Temporary memory of a step and its parts, from XLA's analysis of the programs for this machine.

Nothing runs, and no weights are read: shapes are enough.

  python -m tests.benchmarks.memory --model=sd --preset=sd --prior=toybox --variant=
  python -m tests.benchmarks.memory --model=toybox --views_per_device=4 --whole

It takes all flags of dreamfusion_jax.main, but `--model` names the networks, as shapes alone.
`--whole` compiles the whole step, which takes minutes for Stable Diffusion.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from tests.ahead import abstract_prior, lower_step, networks_of
from tests.benchmarks.tpu_compile import STEPS

_MODEL = flags.DEFINE_enum("model", "sd", STEPS, "The networks: Stable Diffusion 1.5's, or ours.")
_WHOLE = flags.DEFINE_bool("whole", False, "The whole step, too.")

Shape = jax.ShapeDtypeStruct


def temporary_bytes(program: jax.stages.Lowered) -> int:
    """Returns the memory of a program beyond its arguments and results."""
    return program.compile().memory_analysis().temp_size_in_bytes


def encoder(prior: Prior, prior_params: PriorParams, views: int) -> int:
    """Returns the memory to encode the views' images and to pull a residual back to them."""

    def pull_back(params: PriorParams, image: jax.Array, residual: jax.Array) -> Any:
        z, pull = jax.vjp(lambda x: prior.encode(params, x, None).astype(jnp.float32), image)
        return pull(residual)

    image = Shape((views, prior.image_size, prior.image_size, 3), jnp.float32)
    residual = Shape((views, *prior.latent_shape), jnp.float32)
    return temporary_bytes(jax.jit(pull_back).lower(prior_params, image, residual))


def unet(prior: Prior, prior_params: PriorParams, views: int) -> int:
    """Returns the memory of two predictions for each view, with and without the text."""
    z, t = Shape((2 * views, *prior.latent_shape), jnp.float32), Shape((2 * views,), jnp.float32)
    text = jax.eval_shape(lambda: prior.encode_text([""] * 2 * views))
    return temporary_bytes(jax.jit(prior.predict).lower(prior_params, z, t, text))


def main() -> int:
    config = configs.config_from_flags(prompt="a red chair")
    prior, prior_params = abstract_prior(config.prior, networks_of(_MODEL.value))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(prior_params))
    print(f"weights of the prior: {size / 1e6:.1f} MB")
    views = config.train.views_per_device
    for part in (encoder, unet):
        print(
            f"{part.__name__}, {views} views: {part(prior, prior_params, views) / 1e6:.1f} MB",
            flush=True,
        )
    if _WHOLE.value:
        step = lower_step(config, prior, prior_params, jax.devices()[:1])
        print(f"whole step, {views} views: {temporary_bytes(step) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    configs.define_flags()
    cli.run(main)
