"""guidance.png: a training view beside what the prior makes of it, each under its name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamfusion_jax.diffusion.priors.prior import PriorParams
from dreamfusion_jax.distillation.view_prompts import TextTable
from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.rendering.images import to_uint8
from dreamfusion_jax.runtime.files import AnyPath
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.training.guidance_view import TITLES, GuidanceView

FILE, FOLDER = "guidance.png", "guidance"
_LEAST = 128  # pixels of an image's side, so that its title fits
_HEADING = 18


def write_guidance(
    workdir: AnyPath,
    view: GuidanceView,
    step: int,
    prior_params: PriorParams,
    table: TextTable,
    scene_params: Params,
) -> None:
    """Writes guidance.png (always the newest) and guidance/step_N.png.

    Args:
      prior_params, table, scene_params: what `view` takes, on every device.
    """
    inputs = prior_params, table, scene_params
    local: Any = jax.tree.map(lambda leaf: leaf.addressable_data(0), inputs)
    drawn, t = jax.device_get(view(local[0], local[1], local[2], jnp.int32(step)))
    image = guidance_strip(drawn, float(t))
    (workdir / FOLDER).mkdir(exist_ok=True)
    write_png(workdir / FOLDER / f"step_{step:06d}.png", image)
    write_png(workdir / FILE, image)


def guidance_strip(drawn: np.ndarray, t: float) -> np.ndarray:
    """Joins the images [4, S, S, 3] in [0, 1] to one [H, W, 3] uint8, with titles above."""
    side = max(drawn.shape[1], _LEAST)
    strip = Image.new("RGB", (side * len(drawn), side + _HEADING), "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=12)
    for i, (title, image) in enumerate(zip(TITLES, to_uint8(drawn), strict=True)):
        shown = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
        strip.paste(shown, (i * side, _HEADING))
        text = f"{title}, t = {t:.2f}" if title == "noised" else title
        pen.text(((i + 0.5) * side, _HEADING / 2), text, "black", font, anchor="mm")
    return np.asarray(strip)
