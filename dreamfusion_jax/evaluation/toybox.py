"""Measures how reliable the embedded prior and its judge are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dreamfusion_jax.evaluation.score import share
from dreamfusion_jax.rendering.images import to_uint8
from dreamfusion_jax.runs.open_prior import TOYBOX
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.toybox import captions, dataset
from dreamfusion_jax.toybox.azimuth import azimuth_of, load_azimuth_classifier
from dreamfusion_jax.toybox.image_ops import grid
from dreamfusion_jax.toybox.judge import Judge
from dreamfusion_jax.toybox.obedience import examine

UNSEEN_SEED = 90_001  # of true renders that were in no training set

Numbers = dict[str, Any]


def measure_judge(judge: Judge) -> Numbers:
    """Computes top-1 accuracy on unseen true renders, and the kinds named on colored spheres.

    The azimuth is one of eight, of kinds with a front, by a classifier that is given the kind.
    """
    trained = dataset.make(1040, UNSEEN_SEED)
    held_out = dataset.make(520, UNSEEN_SEED + 1, pairs="held_out")
    colored, gray = (
        trained.take(np.flatnonzero(trained.color >= 0)),
        trained.take(np.flatnonzero(trained.color < 0)),
    )
    with_front = trained.take(trained.with_front())
    side = load_azimuth_classifier()(_rgb(with_front), with_front.kind)
    return {
        "pair_accuracy_seen_pairs": share(judge.name_pair(_rgb(colored)) == _pair(colored)),
        "pair_accuracy_held_out_pairs": share(judge.name_pair(_rgb(held_out)) == _pair(held_out)),
        "kind_accuracy_gray": share(judge.name_kind(_rgb(gray)) == gray.kind),
        "azimuth_accuracy": share(side == azimuth_of(with_front)),
        "asked_kind_named_on_spheres": _sphere_rate(judge),
        "chance_of_a_kind": 1.0 / len(captions.KINDS),
    }


def measure_prior(judge: Judge, png: Path | None = None, samples: int = 2) -> Numbers:
    """Computes the share of samples that show the azimuth and the kind of their prompt.

    Args:
      png: where to write the judged images; None: nowhere.
      samples: samples per prompt.
    """
    seen = examine(TOYBOX, judge, load_azimuth_classifier(), samples)
    if png:
        write_png(png, grid(to_uint8(seen.rgb), columns=16))
    by_kind = {
        captions.KINDS[kind]: share(seen.side_right[seen.kind == kind])
        for kind in np.unique(seen.kind)
    }
    return {
        "azimuth_obedience": share(seen.side_right),
        "kind_named": share(seen.kind_right),
        "azimuth_obedience_by_kind": by_kind,
    }


def _sphere_rate(judge: Judge) -> float:
    """Computes how often the benchmark's kinds are named on plain spheres; chance is 1 / K.

    A failed asset, a colored ball, must not score: a judge that guesses from color would.
    """
    named = judge.name_kind(_rgb(dataset.plain_spheres(520, UNSEEN_SEED + 2)))
    kinds = [captions.KINDS.index(pair.split()[-1]) for pair in captions.benchmark_prompts()]
    return share(np.array([np.mean(named == kind) for kind in kinds]))


def _pair(images: dataset.LabeledImages) -> np.ndarray:
    return images.color.astype(int) * len(captions.KINDS) + images.kind


def _rgb(images: dataset.LabeledImages) -> np.ndarray:
    return images.image.astype(np.float32) / 255.0
