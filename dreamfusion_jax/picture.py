"""What a run with --field=image leaves: the picture, and what the prior draws of the same prompt.

Distillation seeks a mode of what the prior, at its guidance, thinks likely; ancestral sampling
draws from it. Side by side they show what a prior and its settings pull a scene towards.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax import sample
from dreamfusion_jax.config import Config
from dreamfusion_jax.files import AnyPath
from dreamfusion_jax.nerf.scene import Scene, albedo_view
from dreamfusion_jax.progress import Progress
from dreamfusion_jax.render import WHITE, Orbit, render_image, to_uint8, write_png
from dreamfusion_jax.training.loop import open_prior

FILES = ("picture.png", "comparison.png")
SAMPLES = 4
SAMPLING_STEPS = 50
# What samples look best at; distillation often wants far more.
SAMPLING_GUIDANCE = 6.0


def write_comparison(
    workdir: AnyPath, scene: Scene, params: Any, step: int, config: Config
) -> None:
    """Writes picture.png, and comparison.png: the picture, then four ancestral samples."""

    def drawn(size: int) -> np.ndarray:
        view = albedo_view(Orbit().camera(0.0), jnp.array(WHITE))
        return render_image(scene, params, view, size, step).image

    prior, weights = open_prior(config.prior)
    text = prior.encode_text([config.train.prompt] * SAMPLES)
    empty_text = prior.encode_text([config.prior.negative_prompt])
    with Progress(SAMPLING_STEPS, "sampling", "step") as progress:
        scales = SAMPLING_GUIDANCE, config.prior.guidance_rescale
        draw = sample.make_sampler(prior, SAMPLING_STEPS, scales, progress.update, eta=1.0)
        samples = draw(weights, text, empty_text, sample.sample_keys(config.train.seed, SAMPLES))
    row = np.concatenate([drawn(prior.image_size)[None], samples])
    write_png(workdir / FILES[0], to_uint8(drawn(config.scene.image_size)))
    write_png(workdir / FILES[1], sample.picture_grid([row]))
