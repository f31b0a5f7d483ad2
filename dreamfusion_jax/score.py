"""What the judge says of finished assets, seen from all around.

As in the paper's R-precision (Poole et al. 2022, section 4): views at one elevation, each named by
a CLIP among all the captions there are. The judge here is toybox-clip; of a picture without colour
only the kind is asked for, so that is another number with another name.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.scene import Scene, albedo_view, lit_view
from dreamfusion_jax.render import Orbit, render_image
from dreamfusion_jax.toybox import captions, dataset
from dreamfusion_jax.toybox.azimuth import NameSide
from dreamfusion_jax.toybox.judge import Judge
from dreamfusion_jax.training.checkpoint import load_run

ELEVATION_DEG = 30.0
AZIMUTHS_DEG = tuple(45.0 * i for i in range(8))
BACKGROUND = (0.8, 0.8, 0.8)
FRONT = captions.AZIMUTH_PHRASES.index("front view")


class AssetViews(NamedTuple):
    """One asset from eight azimuths; each [8, 64, 64, 3] in [0, 1].

    Attributes:
      albedo: its colours alone.
      shaded: the same under a light.
      textureless: grey under that light.
    """

    albedo: np.ndarray
    shaded: np.ndarray
    textureless: np.ndarray


class Score(NamedTuple):
    """What the judge names in an asset's views.

    Attributes:
      r_precision_albedo, r_precision_shaded: share of the views named by the prompt's colour and
        kind among all pairs.
      kind_precision_textureless: share of the grey views named by the prompt's kind.
      front_views: how many of the eight azimuths show a front, by the azimuth classifier: one, if
        all is well, more of a Janus; None where the kind has no front.
    """

    r_precision_albedo: float
    r_precision_shaded: float
    kind_precision_textureless: float
    front_views: int | None


def make_asset(prompt: str, workdir: Path, arguments: Sequence[str] = ()) -> None:
    """Runs the main program, which goes on with, or leaves alone, what is there already."""
    command = [sys.executable, "-m", "dreamfusion_jax.main"]
    command += [f"--prompt={prompt}", f"--workdir={workdir}", *arguments]
    if subprocess.run(command).returncode:
        raise UserError(f"--workdir={workdir} has no asset of {prompt!r}: see the line above.")


def views_of_run(workdir: Path) -> AssetViews:
    """The views of the asset in a work folder."""
    _, scene, state = load_run(workdir)
    return asset_views(scene, state.params, int(state.step))


def asset_views(scene: Scene, params: Any, step: int) -> AssetViews:
    """The views that are judged."""
    # A textureless view is painted grey below; its background is to be the same as the others'.
    grey = np.array(captions.GREY, np.float32)
    background, behind_grey = jnp.array(BACKGROUND), jnp.array(BACKGROUND / grey)
    lit = functools.partial(lit_view, ambient=0.4, diffuse=0.6)
    rows = []
    for azimuth_deg in AZIMUTHS_DEG:
        camera = Orbit().camera(azimuth_deg, ELEVATION_DEG)
        views = (
            albedo_view(camera, background),
            lit(camera, background),
            lit(camera, behind_grey, textureless=True),
        )
        size = dataset.IMAGE_SIZE
        rows.append([render_image(scene, params, view, size, step).image for view in views])
    albedo, shaded, textureless = np.moveaxis(np.asarray(rows), 1, 0)
    return AssetViews(albedo, shaded, textureless * grey)


def score_views(judge: Judge, name_side: NameSide, prompt: str, views: AssetViews) -> Score:
    """What the judge, and the azimuth classifier, make of an asset that was made for `prompt`."""
    pair = prompt_pair(prompt)
    asked, kind = captions.all_pairs().index(pair), captions.KINDS.index(pair[1])
    fronts = None
    if pair[1] in captions.KINDS_WITH_FRONT:
        sides = name_side(views.albedo, np.full(len(views.albedo), kind))
        fronts = int(np.sum(sides == FRONT))
    return Score(
        share(judge.name_pair(views.albedo) == asked),
        share(judge.name_pair(views.shaded) == asked),
        share(judge.name_kind(views.textureless) == kind),
        fronts,
    )


def prompt_pair(prompt: str) -> tuple[str, str]:
    """The colour and the kind that a prompt asks for."""
    words = prompt.lower().replace(",", " ").split()
    pairs = [pair for pair in captions.all_pairs() if pair[0] in words and pair[1] in words]
    if len(pairs) != 1:
        raise UserError(f"The judge knows no single colour and kind in the prompt {prompt!r}.")
    return pairs[0]


def share(right: np.ndarray) -> float:
    """The share of what is true, to four digits."""
    return round(float(np.mean(right)), 4)


def totals(scores: Sequence[Score]) -> dict[str, float | None]:
    """The mean of each number over those assets that have it."""
    means: dict[str, float | None] = {}
    for name in Score._fields:
        values = [getattr(score, name) for score in scores if getattr(score, name) is not None]
        means[name] = round(float(np.mean(values)), 4) if values else None
    return means
