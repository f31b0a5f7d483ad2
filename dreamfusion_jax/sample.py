"""Draws samples of a prior as a grid, one row for each prompt.

python -m dreamfusion_jax.sample --prompt="a blue mug, front view"
python -m dreamfusion_jax.sample --prompt="a red chair" --prompt="a green car" --samples=8
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.distillation.options import DistillationOptions, ViewPromptOptions
from dreamfusion_jax.rendering.images import image_grid
from dreamfusion_jax.runs.sampling import Guidance, draw_samples, open_sampler
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import local_path
from dreamfusion_jax.runtime.png import write_png

FLAGS = flags.FLAGS
_PRIOR = tuple(field.name for field in dataclasses.fields(PriorOptions))
_GUIDANCE = ("negative_prompt", "guidance_rescale")


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string("prompt", None, "what to draw; may be repeated")
    configs.define_flags((*_PRIOR, *_GUIDANCE, "platform"))
    flags.DEFINE_string("output", "samples.png", "the PNG to write")
    flags.DEFINE_integer("samples", 4, "images for each prompt", 1, 4096)
    flags.DEFINE_integer("steps", 25, "steps for each image", 1, 1_000_000)
    flags.DEFINE_float(
        "eta",
        None,
        "fresh noise in each step (0: DDIM; 1: ancestral sampling; unset: 1 for a prior that"
        " predicts a variance, as DeepFloyd IF, else 0)",
        0.0,
        1.0,
    )
    flags.DEFINE_float("guidance_scale", 6.0, "classifier-free guidance (1: none)", 0.0, 1e3)
    flags.DEFINE_integer(
        "seed", 0, "seed of the initial noise, which all prompts share", 0, 2**31 - 1
    )


def main() -> int:
    """Writes the grid; returns the exit code."""
    prompts = FLAGS.prompt
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError('--prompt is empty: name what to draw, as in --prompt="a blue mug".')
    for prompt in prompts:
        configs.check_text("--prompt", prompt)
    if not math.isfinite(FLAGS.guidance_scale + (FLAGS.eta or 0.0)):
        raise UserError("--guidance_scale and --eta must be finite numbers.")
    given: dict[str, Any] = {name: FLAGS[name].value for name in _PRIOR}
    options = PriorOptions(**given)
    configs.check_section(options)
    configs.check_section(ViewPromptOptions(negative_prompt=FLAGS.negative_prompt))
    configs.check_section(DistillationOptions(guidance_rescale=FLAGS.guidance_rescale))
    output = _writable_png(FLAGS.output)
    cli.use_platform(FLAGS.platform)
    cli.use_compilation_cache("auto")
    guidance = Guidance(FLAGS.guidance_scale, FLAGS.guidance_rescale, FLAGS.negative_prompt)
    counts = FLAGS.samples, FLAGS.steps, FLAGS.seed
    rows = draw_samples(open_sampler(options), prompts, guidance, *counts, FLAGS.eta)
    write_png(output, image_grid(rows))
    print(f"{output.resolve()}: {len(prompts)} x {FLAGS.samples} samples.")
    return 0


def _writable_png(name: str) -> Path:
    configs.check_text("--output", name)
    path = local_path(name, "output")
    if path.suffix.lower() != ".png":
        raise UserError(f"--output={path} must end in .png.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--output={path} cannot be written: name a file in a writable folder.")
    return path


if __name__ == "__main__":
    define_flags()
    cli.run(main)
