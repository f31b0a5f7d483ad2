"""How well a prior obeys the words of a prompt: kind, color and azimuth of what it draws."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.azimuth import NameSide, load_azimuth_classifier
from dreamfusion_jax.toybox.judge import Judge, load_judge

STEPS, GUIDANCE_SCALE = 25, 4.0
_BATCH = 16
_JUDGES = pathlib.Path(__file__).parent


class Asked(NamedTuple):
    """A prompt and what an obedient sample shows.

    Attributes:
      prompt: with a color that training saw with this kind.
      kind: index into captions.KINDS.
      pair: index into captions.all_pairs().
      side: index into captions.AZIMUTH_PHRASES.
    """

    prompt: str
    kind: int
    pair: int
    side: int


class Samples(NamedTuple):
    """Samples, and what they show of what they were to show.

    Attributes:
      rgb: [N, H, W, 3] in [0, 1].
      kind: [N] the kinds asked for.
      kind_right, pair_right, side_right: [N] whether the judges see what was asked for.
    """

    rgb: np.ndarray
    kind: np.ndarray
    kind_right: np.ndarray
    pair_right: np.ndarray
    side_right: np.ndarray


def ask(samples: int = 1) -> list[Asked]:
    """Asks `samples` times for every kind with a front from each of eight azimuths."""
    hidden, pairs, asked = captions.held_out_pairs(), captions.all_pairs(), []
    for kind in captions.KINDS_WITH_FRONT:
        number = captions.KINDS.index(kind)
        colors = [color for color in captions.COLORS if (color, kind) not in hidden]
        for side, phrase in enumerate(captions.AZIMUTH_PHRASES):
            for sample in range(samples):
                color = colors[(number + side + sample) % len(colors)]
                prompt = captions.with_article(f"a {color} {kind}, {phrase}, medium angle")
                asked.append(Asked(prompt, number, pairs.index((color, kind)), side))
    return asked


def draw_prompts(directory: pathlib.Path, prompts: Sequence[str]) -> np.ndarray:
    """Samples an image [N, H, W, 3] in [0, 1] for each prompt from the prior in `directory`."""
    prior, params = load_prior(directory)

    @jax.jit
    def draw(params: Any, text: Condition, empty: Condition, key: jax.Array) -> jax.Array:
        latents = ddim_sample(prior, params, text, empty, key, STEPS, GUIDANCE_SCALE)
        return prior.decode(params, latents)

    padded = [*prompts, *[""] * (-len(prompts) % _BATCH)]
    empty = prior.encode_text([""] * _BATCH)
    drawn = [
        draw(params, prior.encode_text(padded[i : i + _BATCH]), empty, jax.random.key(i))
        for i in range(0, len(padded), _BATCH)
    ]
    return np.concatenate([np.asarray(rgb) for rgb in drawn])[: len(prompts)]


def examine(
    directory: pathlib.Path, judge: Judge, name_side: NameSide, samples: int = 1
) -> Samples:
    """Draws what `ask` asks for from the prior in `directory`, and has it judged."""
    prompts, *numbers = zip(*ask(samples), strict=True)
    rgb = draw_prompts(directory, prompts)
    kind, pair, side = np.array(numbers)
    return Samples(
        rgb,
        kind,
        judge.name_kind(rgb) == kind,
        judge.name_pair(rgb) == pair,
        name_side(rgb, kind) == side,
    )


def measure_obedience(
    directory: pathlib.Path, judges: pathlib.Path | None = None
) -> dict[str, float]:
    """Measures how often samples show the azimuth, the kind and the pair asked for.

    Args:
      judges: holds clip_weights/ and azimuth_weights/; None: those that the package carries.
    """
    folder = judges or _JUDGES
    judge = load_judge(folder / "clip_weights")
    samples = examine(directory, judge, load_azimuth_classifier(folder / "azimuth_weights"))
    return {
        "azimuth_obedience": float(np.mean(samples.side_right)),
        "kind_named": float(np.mean(samples.kind_right)),
        "pair_named": float(np.mean(samples.pair_right)),
    }
