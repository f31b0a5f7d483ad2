"""How well a prior obeys the words of a prompt: kind, color and azimuth of what it draws."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.azimuth import load_azimuth_classifier
from dreamfusion_jax.toybox.judge import load_judge

_BATCH = 32
_JUDGES = pathlib.Path(__file__).parent


def draw_prompts(
    directory: pathlib.Path, prompts: Sequence[str], steps: int = 20, guidance_scale: float = 4.0
) -> np.ndarray:
    """Samples an image [N, H, W, 3] in [0, 1] for each prompt from the prior in `directory`."""
    prior, params = load_prior(directory)

    @jax.jit
    def draw(params: Any, text: Condition, empty: Condition, key: jax.Array) -> jax.Array:
        latents = ddim_sample(prior, params, text, empty, key, steps, guidance_scale)
        return prior.decode(params, latents)

    padded = [*prompts, *[""] * (-len(prompts) % _BATCH)]
    empty = prior.encode_text([""] * _BATCH)
    drawn = [
        draw(params, prior.encode_text(padded[i : i + _BATCH]), empty, jax.random.key(i))
        for i in range(0, len(padded), _BATCH)
    ]
    return np.concatenate([np.asarray(rgb) for rgb in drawn])[: len(prompts)]


def measure_obedience(
    directory: pathlib.Path, judges: pathlib.Path | None = None
) -> dict[str, float]:
    """Measures how often samples show the pair and the azimuth asked for.

    One sample of every kind with a front from each of eight azimuths, in colors that training saw.

    Args:
      judges: holds clip_weights/ and azimuth_weights/; None: those that the package carries.
    """
    hidden, colors = captions.held_out_pairs(), tuple(captions.COLORS)
    asked = []
    for kind in captions.KINDS_WITH_FRONT:
        shown = [color for color in colors if (color, kind) not in hidden]
        number = captions.KINDS.index(kind)
        for side in range(len(captions.AZIMUTH_PHRASES)):
            asked.append((shown[(number + side) % len(shown)], kind, side))
    prompts = [
        captions.with_article(f"a {color} {kind}, {captions.AZIMUTH_PHRASES[side]}, medium angle")
        for color, kind, side in asked
    ]
    rgb = draw_prompts(directory, prompts)
    kinds = np.array([captions.KINDS.index(kind) for _, kind, _ in asked])
    pairs = np.array([captions.all_pairs().index((color, kind)) for color, kind, _ in asked])
    sides = np.array([side for _, _, side in asked])
    folders = judges or _JUDGES
    judge = load_judge(folders / "clip_weights")
    classify = load_azimuth_classifier(folders / "azimuth_weights")
    return {
        "azimuth_obedience": float(np.mean(classify(rgb, kinds) == sides)),
        "kind_named": float(np.mean(judge.name_kind(rgb) == kinds)),
        "pair_named": float(np.mean(judge.name_pair(rgb) == pairs)),
    }
