"""How good is it? The judge, the prior, and the assets, measured.

  python -m dreamfusion_jax.evaluate --measure=judge       toybox-clip on unseen true renders
  python -m dreamfusion_jax.evaluate --measure=prior       does the prior obey the view words?
  python -m dreamfusion_jax.evaluate --measure=assets --workdirs=workdir/benchmark/*
                                                           R-precision of finished runs
  python -m dreamfusion_jax.evaluate --measure=benchmark --workdir=workdir/benchmark
                                                           makes the ten assets, then measures

Each prints a table and, with --json, writes the same numbers to a file.
"""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from dreamfusion_jax import entry
from dreamfusion_jax.config import define_flags, read_config, slug
from dreamfusion_jax.diffusion.prior import load_prior
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.render import to_uint8, write_png
from dreamfusion_jax.score import (
    make_asset,
    prompt_pair,
    score_views,
    share,
    totals,
    views_of_run,
)
from dreamfusion_jax.toybox import captions, dataset
from dreamfusion_jax.toybox.azimuth import azimuth_of, load_azimuth_classifier
from dreamfusion_jax.toybox.judge import Judge, load_judge
from dreamfusion_jax.toybox.pictures import grid
from dreamfusion_jax.training.loop import TOYBOX

UNSEEN_SEED = 90_001  # of true renders that no training saw
_MEASURES = ("judge", "prior", "assets", "benchmark")

_MEASURE = flags.DEFINE_enum("measure", "judge", _MEASURES, "What to measure.")
_WORKDIRS = flags.DEFINE_string("workdirs", "", "Finished runs to measure, as a file pattern.")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/benchmark", "Where the benchmark's runs go.")
_JSON = flags.DEFINE_string("json", "", "Also write the numbers to this file.")
_PICTURES = flags.DEFINE_string("pictures", "", "Also write the pictures judged to this PNG.")

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


def measure_prior(judge: Judge, samples: int = 2) -> Numbers:
    """Share of drawn pictures that show the azimuth and the kind asked for."""
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
    def draw(weights: Any, text: jax.Array, empty: jax.Array, key: jax.Array) -> jax.Array:
        return prior.decode(weights, ddim_sample(prior, weights, text, empty, key, 25, 4.0))

    batch = 16
    empty = prior.encode_text([""] * batch)
    pictures = []
    for start in range(0, len(prompts), batch):
        text = prior.encode_text(prompts[start : start + batch])
        pictures.append(np.asarray(draw(weights, text, empty, jax.random.key(start))))
    rgb = np.concatenate(pictures)
    if _PICTURES.value:
        write_png(Path(_PICTURES.value), grid(to_uint8(rgb), columns=16))
    right = load_azimuth_classifier()(rgb, kinds) == sides
    by_kind = {captions.KINDS[kind]: share(right[kinds == kind]) for kind in np.unique(kinds)}
    return {
        "azimuth_obedience": share(right),
        "kind_named": share(judge.name_kind(rgb) == kinds),
        "azimuth_obedience_by_kind": by_kind,
    }


def measure_assets(judge: Judge, workdirs: list[Path]) -> Numbers:
    """R-precision and the other scores of finished runs, one by one and on average."""
    name_side, scores, rows = load_azimuth_classifier(), [], {}
    for workdir in workdirs:
        prompt = read_config(workdir / "config.json").train.prompt
        scores.append(score_views(judge, name_side, prompt, views_of_run(workdir)))
        held_out = prompt_pair(prompt) in captions.held_out_pairs()
        rows[prompt] = {**scores[-1]._asdict(), "held_out": held_out}
    return {**totals(scores), "assets": rows}


def run_benchmark(workdir: Path) -> list[Path]:
    """Makes the benchmark's assets with default settings and seed 0; finished ones are kept."""
    workdirs = []
    for prompt in captions.benchmark_prompts():
        workdirs.append(workdir / slug(prompt))
        make_asset(prompt, workdirs[-1])
    return workdirs


def main() -> int:
    for name, path in (("json", _JSON.value), ("pictures", _PICTURES.value)):
        if path and not Path(path).parent.is_dir():
            raise UserError(f"--{name}={path} cannot be written: name a file in a folder of yours.")
    entry.use_platform(flags.FLAGS.platform)
    entry.use_compilation_cache("auto")
    judge = load_judge()
    if _MEASURE.value == "judge":
        numbers = measure_judge(judge)
    elif _MEASURE.value == "prior":
        numbers = measure_prior(judge)
    elif _MEASURE.value == "benchmark":
        numbers = measure_assets(judge, run_benchmark(Path(_WORKDIR.value)))
    else:
        workdirs = [Path(name) for name in sorted(glob.glob(_WORKDIRS.value))]
        if not workdirs:
            raise UserError(
                f"--workdirs={_WORKDIRS.value!r} matches no folder; name finished runs."
            )
        numbers = measure_assets(judge, workdirs)
    _print_table(numbers)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


def _sphere_rate(judge: Judge) -> float:
    """How often the kinds of the benchmark's prompts are named on plain spheres; chance is 1 / K.

    An empty result, a coloured ball, must not score: a judge that guesses from colour would.
    """
    named = judge.name_kind(_rgb(dataset.plain_spheres(520, UNSEEN_SEED + 2)))
    asked = [captions.KINDS.index(pair.split()[-1]) for pair in captions.benchmark_prompts()]
    return share(np.array([np.mean(named == kind) for kind in asked]))


def _pair(pictures: dataset.Pictures) -> np.ndarray:
    return pictures.color.astype(int) * len(captions.KINDS) + pictures.kind


def _rgb(pictures: dataset.Pictures) -> np.ndarray:
    return pictures.image.astype(np.float32) / 255.0


def _print_table(numbers: Numbers, indent: str = "") -> None:
    for name, value in numbers.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_table(value, indent + "  ")
        else:
            print(f"{indent}{name:<32} {value}")


if __name__ == "__main__":
    define_flags(("platform",))
    entry.run(main)
