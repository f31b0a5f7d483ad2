"""Draws what a prior knows: DDIM samples as a grid, one row a prompt.

python -m dreamfusion_jax.sample --prompt="a blue mug, front view"
python -m dreamfusion_jax.sample --prompt="a red chair" --prompt="a green car" --samples=8
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry, memory, render
from dreamfusion_jax.diffusion.prior import Prior
from dreamfusion_jax.diffusion.sampling import ddim_indices, ddim_step
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.progress import Progress
from dreamfusion_jax.settings import PriorConfig
from dreamfusion_jax.training.loop import open_prior

FLAGS = flags.FLAGS
PRIOR_FLAGS = (
    "prior",
    "revision",
    "variant",
    "prior_dtype",
    "vae_dtype",
    "negative_prompt",
    "guidance_rescale",
)


def define_flags() -> None:
    flags.DEFINE_multi_string("prompt", None, "what to draw; may be given several times")
    configs.define_flags((*PRIOR_FLAGS, "platform"))
    flags.DEFINE_string("output", "samples.png", "the PNG to write")
    flags.DEFINE_integer("samples", 4, "pictures a prompt", 1, 4096)
    flags.DEFINE_integer("steps", 25, "DDIM steps a picture", 1, 1_000_000)
    flags.DEFINE_float(
        "eta", 0.0, "fresh noise in each step (0: DDIM; 1: ancestral sampling)", 0.0, 1.0
    )
    flags.DEFINE_float("guidance_scale", 6.0, "classifier-free guidance (1: none)", 0.0, 1e3)
    flags.DEFINE_integer(
        "seed", 0, "decides the initial noise, the same for every prompt", 0, 2**31 - 1
    )


def main() -> int:
    prompts = FLAGS.prompt
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError('--prompt is empty: say what to draw, as in --prompt="a blue mug".')
    for prompt in prompts:
        configs.check_text("--prompt", prompt)
    if not math.isfinite(FLAGS.guidance_scale + FLAGS.eta):
        raise UserError("--guidance_scale and --eta must be finite numbers.")
    settings: dict[str, Any] = {name: FLAGS[name].value for name in PRIOR_FLAGS}
    configs.check_section(PriorConfig(**settings))
    output = _writable_png(Path(FLAGS.output))
    entry.use_platform(FLAGS.platform)
    entry.use_compilation_cache("auto")
    config = PriorConfig(**settings, guidance_scale=FLAGS.guidance_scale)
    rows = draw_samples(config, prompts, FLAGS.samples, FLAGS.steps, FLAGS.seed, FLAGS.eta)
    render.write_png(output, picture_grid(rows))
    print(f"{output.resolve()}: {len(prompts)} x {FLAGS.samples} samples.")
    return 0


def draw_samples(
    config: PriorConfig,
    prompts: Sequence[str],
    samples: int,
    steps: int,
    seed: int,
    eta: float = 0.0,
) -> list[np.ndarray]:
    """Of every prompt so many samples, [B, size, size, 3] in [0, 1], with a bar.

    Args:
      config: the prior, its guidance and its negative prompt.
      steps: of DDIM.
      eta: share of fresh noise in each of them.

    Raises:
      UserError: the prior, or its files, are no good, or memory runs out.
    """
    prior, weights = open_prior(config)
    ddim_indices(prior.schedule, steps)  # refuses a bad number before any work
    keys, empty_text = sample_keys(seed, samples), prior.encode_text([config.negative_prompt])
    scales = config.guidance_scale, config.guidance_rescale
    with (
        memory.explained("samples were drawn", lambda: memory.sample_remedies(samples)),
        Progress(len(prompts) * steps, "sampling", "step") as progress,
    ):
        draw = make_sampler(prior, steps, scales, progress.update, eta)
        return [
            draw(weights, prior.encode_text([prompt] * samples), empty_text, keys)
            for prompt in prompts
        ]


def sample_keys(seed: int, samples: int) -> jax.Array:
    """One key a sample [B]: asking for more leaves the first ones as they are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(samples))


def draw_noise(prior: Prior, keys: jax.Array) -> jax.Array:
    """[B, h, w, c] standard normal, each latent from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, prior.latent_shape))(keys)


def make_sampler(
    prior: Prior,
    steps: int,
    scales: tuple[float, float],
    on_step: Callable[[], Any],
    eta: float = 0.0,
) -> Callable[[Any, jax.Array, jax.Array, jax.Array], np.ndarray]:
    """weights, text [B, L, D], empty_text [1, L, D], keys [B] -> pictures [B, size, size, 3].

    `scales` are those of guidance and of its rescaling; `eta` is the share of fresh noise. The host
    counts the steps, unlike in `ddim_sample`, so that it can show how far it is.
    """
    step, decode = jax.jit(functools.partial(ddim_step, prior)), jax.jit(prior.decode)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    indices, previous = ddim_indices(prior.schedule, steps)

    def draw(weights: Any, text: jax.Array, empty_text: jax.Array, keys: jax.Array) -> np.ndarray:
        z = draw_noise(prior, keys)
        for here, there in zip(indices, previous, strict=True):
            fresh = draw_noise(prior, fold(keys, here)) if eta else 0.0
            z = step(weights, z, here, there, text, empty_text, *scales, eta, fresh)
            jax.block_until_ready(z)
            on_step()
        return np.asarray(decode(weights, z))

    return draw


def picture_grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of pictures [B, H, W, 3] in [0, 1] -> one 8-bit picture [rows * H, B * W, 3]."""
    return render.to_uint8(np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0))


def _writable_png(path: Path) -> Path:
    configs.check_text("--output", str(path))
    if path.suffix.lower() != ".png":
        raise UserError(f"--output={path} must end in .png.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--output={path} cannot be written: name a file in a folder of yours.")
    return path


if __name__ == "__main__":
    define_flags()
    entry.run(main)
