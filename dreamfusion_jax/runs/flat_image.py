"""Outputs of a run with --field=image: its image, and samples of the prior for the same prompt.

Distillation seeks a mode of the prior's guided distribution; ancestral sampling draws from it.
Side by side they show what a prior and its settings pull a scene towards.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import albedo_view
from dreamfusion_jax.rendering.images import WHITE, Orbit, image_grid, render_image, to_uint8
from dreamfusion_jax.runs.sampling import Guidance, PriorSampler, draw_samples
from dreamfusion_jax.runtime.files import AnyPath
from dreamfusion_jax.runtime.png import write_png

FILES = ("picture.png", "comparison.png")
SAMPLES = 4
SAMPLING_STEPS = 50
# Suits sampling; distillation often needs far more.
SAMPLING_GUIDANCE = 6.0


def write_image(workdir: AnyPath, scene: Scene, params: Params, step: int, config: Config) -> None:
    """Writes picture.png, the image at its own size."""
    write_png(workdir / FILES[0], to_uint8(_render(scene, params, config.scene.image_size, step)))


def write_comparison(
    workdir: AnyPath,
    scene: Scene,
    params: Params,
    step: int,
    config: Config,
    sampler: PriorSampler,
) -> None:
    """Writes comparison.png: the image, then four ancestral samples."""
    guidance = Guidance(
        SAMPLING_GUIDANCE,
        config.distillation.guidance_rescale,
        config.view_prompts.negative_prompt,
    )
    counts = SAMPLES, SAMPLING_STEPS, config.train.seed
    prompts = [config.train.prompt]
    (samples,) = draw_samples(sampler, prompts, guidance, *counts, eta=1.0)
    row = np.concatenate([_render(scene, params, samples.shape[1], step)[None], samples])
    write_png(workdir / FILES[1], image_grid([row]))


def _render(scene: Scene, params: Params, size: int, step: int) -> np.ndarray:
    view = albedo_view(Orbit().camera(0.0), jnp.array(WHITE))
    return render_image(scene, params, view, size, step).image
