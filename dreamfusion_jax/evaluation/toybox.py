"""How far the embedded prior and its judge can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.evaluation.score import share
from dreamfusion_jax.rendering.images import to_uint8
from dreamfusion_jax.runs.open_prior import TOYBOX
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.toybox import captions, dataset
from dreamfusion_jax.toybox.azimuth import azimuth_of, load_azimuth_classifier
from dreamfusion_jax.toybox.image_ops import grid
from dreamfusion_jax.toybox.judge import Judge

UNSEEN_SEED = 90_001  # of true renders that no training saw

Numbers = dict[str, Any]


def measure_judge(judge: Judge) -> Numbers:
    """Top-1 accuracy on unseen true renders, and what is named on coloured spheres.

    The azimuth is one of eight, of kinds with a front, named by its own classifier given the kind.
    """
    seen = dataset.make(1040, UNSEEN_SEED)
    hidden = dataset.make(520, UNSEEN_SEED + 1, pairs="held_out")
    colored, grey = (
        seen.take(np.flatnonzero(seen.color >= 0)),
        seen.take(np.flatnonzero(seen.color < 0)),
    )
    sided = seen.take(seen.with_front())
    side = load_azimuth_classifier()(_rgb(sided), sided.kind)
    return {
        "pair_accuracy_seen_pairs": share(judge.name_pair(_rgb(colored)) == _pair(colored)),
        "pair_accuracy_held_out_pairs": share(judge.name_pair(_rgb(hidden)) == _pair(hidden)),
        "kind_accuracy_grey": share(judge.name_kind(_rgb(grey)) == grey.kind),
        "azimuth_accuracy": share(side == azimuth_of(sided)),
        "asked_kind_named_on_spheres": _sphere_rate(judge),
        "chance_of_a_kind": 1.0 / len(captions.KINDS),
    }


def measure_prior(judge: Judge, pictures: Path | None = None, samples: int = 2) -> Numbers:
    """Share of drawn pictures that show the azimuth and the kind asked for.

    Args:
      pictures: where to put what was judged, as a PNG.
    """
    prior, weights = load_prior(TOYBOX)
    colors, hidden = tuple(captions.COLORS), captions.held_out_pairs()
    asked, prompts = [], []
    for kind in captions.KINDS_WITH_FRONT:
        for side, phrase in enumerate(captions.AZIMUTH_PHRASES):
            for sample in range(samples):
                offset = side + sample
                shown = [c for c in colors if (c, kind) not in hidden]
                color = shown[(captions.KINDS.index(kind) + offset) % len(shown)]
                asked.append((captions.KINDS.index(kind), side))
                prompts.append(captions.with_article(f"a {color} {kind}, {phrase}, medium angle"))
    kinds, sides = np.array(asked).T

    @jax.jit
    def draw(weights: Any, text: Condition, empty: Condition, key: jax.Array) -> jax.Array:
        return prior.decode(weights, ddim_sample(prior, weights, text, empty, key, 25, 4.0))

    batch = 16
    empty = prior.encode_text([""] * batch)
    drawn = []
    for start in range(0, len(prompts), batch):
        text = prior.encode_text(prompts[start : start + batch])
        drawn.append(np.asarray(draw(weights, text, empty, jax.random.key(start))))
    rgb = np.concatenate(drawn)
    if pictures:
        write_png(pictures, grid(to_uint8(rgb), columns=16))
    right = load_azimuth_classifier()(rgb, kinds) == sides
    by_kind = {captions.KINDS[kind]: share(right[kinds == kind]) for kind in np.unique(kinds)}
    return {
        "azimuth_obedience": share(right),
        "kind_named": share(judge.name_kind(rgb) == kinds),
        "azimuth_obedience_by_kind": by_kind,
    }


def _sphere_rate(judge: Judge) -> float:
    """How often the kinds of the benchmark's prompts are named on plain spheres; chance is 1 / K.

    An empty result, a coloured ball, must not score: a judge that guesses from colour would.
    """
    named = judge.name_kind(_rgb(dataset.plain_spheres(520, UNSEEN_SEED + 2)))
    asked = [captions.KINDS.index(pair.split()[-1]) for pair in captions.benchmark_prompts()]
    return share(np.array([np.mean(named == kind) for kind in asked]))


def _pair(pictures: dataset.LabeledImages) -> np.ndarray:
    return pictures.color.astype(int) * len(captions.KINDS) + pictures.kind


def _rgb(pictures: dataset.LabeledImages) -> np.ndarray:
    return pictures.image.astype(np.float32) / 255.0
