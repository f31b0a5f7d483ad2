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
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dreamfusion_jax import entry
from dreamfusion_jax.diffusion.prior import load_prior
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.scene import albedo_view, lit_view
from dreamfusion_jax.render import Orbit, render_image, to_uint8, write_png
from dreamfusion_jax.toybox import captions, dataset
from dreamfusion_jax.toybox.azimuth import azimuth_of, load_azimuth_classifier
from dreamfusion_jax.toybox.judge import Judge, load_judge
from dreamfusion_jax.toybox.pictures import grid
from dreamfusion_jax.training.checkpoint import load_run
from dreamfusion_jax.training.loop import TOYBOX

# As the paper's R-precision: views at one elevation from all around (Poole et al. 2022, section 4).
ELEVATION_DEG = 30.0
AZIMUTHS_DEG = tuple(45.0 * i for i in range(8))
BACKGROUND = (0.8, 0.8, 0.8)
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
        "pair_accuracy_seen_pairs": _mean(judge.name_pair(_rgb(colored)) == _pair(colored)),
        "pair_accuracy_held_out_pairs": _mean(judge.name_pair(_rgb(hidden)) == _pair(hidden)),
        "kind_accuracy_grey": _mean(judge.name_kind(_rgb(grey)) == grey.kind),
        "azimuth_accuracy": _mean(side == azimuth_of(sided)),
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
    by_kind = {captions.KINDS[kind]: _mean(right[kinds == kind]) for kind in np.unique(kinds)}
    return {
        "azimuth_obedience": _mean(right),
        "kind_named": _mean(judge.name_kind(rgb) == kinds),
        "azimuth_obedience_by_kind": by_kind,
    }


def measure_assets(judge: Judge, workdirs: list[Path]) -> Numbers:
    """R-precision: how often the judge names the prompt's pair among all pairs, view by view."""
    rows: dict[str, Any] = {}
    for workdir in workdirs:
        run = load_run(workdir)
        pair = _prompt_pair(run.config.train.prompt)
        albedo, grey = _asset_views(run.scene, run.state.params, int(run.state.step))
        rows[run.config.train.prompt] = {
            "r_precision_albedo": _mean(
                judge.name_pair(albedo) == captions.all_pairs().index(pair)
            ),
            "kind_precision_textureless": _mean(
                judge.name_kind(grey) == captions.KINDS.index(pair[1])
            ),
            "held_out": pair in captions.held_out_pairs(),
        }
    totals = {
        key: _mean(np.array([row[key] for row in rows.values()]))
        for key in ("r_precision_albedo", "kind_precision_textureless")
    }
    return {**totals, "assets": rows}


def run_benchmark(workdir: Path) -> list[Path]:
    """Makes the benchmark's assets with default settings and seed 0; finished ones are kept."""
    workdirs = []
    for prompt in captions.benchmark_prompts():
        target = workdir / prompt.replace(" ", "-")
        command = [sys.executable, "-m", "dreamfusion_jax.main"]
        subprocess.run([*command, f"--prompt={prompt}", f"--workdir={target}"], check=True)
        workdirs.append(target)
    return workdirs


def main() -> int:
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


def _asset_views(scene: Any, params: Any, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Albedo views and textureless lit views [8, 64, 64, 3] in [0, 1]."""
    # A textureless view is painted grey below; its background is to be the same as the others'.
    grey = np.array(captions.GREY, np.float32)
    background, behind_grey, pictures = jnp.array(BACKGROUND), jnp.array(BACKGROUND / grey), []
    for azimuth_deg in AZIMUTHS_DEG:
        camera = Orbit().camera(azimuth_deg, ELEVATION_DEG)
        for view in (
            albedo_view(camera, background),
            lit_view(camera, behind_grey, textureless=True, ambient=0.4, diffuse=0.6),
        ):
            image = render_image(scene, params, view, dataset.IMAGE_SIZE, jnp.int32(step)).image
            pictures.append(np.asarray(image))
    rows = np.stack(pictures).reshape(len(AZIMUTHS_DEG), 2, *pictures[0].shape)
    return rows[:, 0], rows[:, 1] * grey


def _sphere_rate(judge: Judge) -> float:
    """How often the kinds of the benchmark's prompts are named on plain spheres; chance is 1 / K.

    An empty result, a coloured ball, must not score: a judge that guesses from colour would.
    """
    named = judge.name_kind(_rgb(dataset.plain_spheres(520, UNSEEN_SEED + 2)))
    asked = [captions.KINDS.index(pair.split()[-1]) for pair in captions.benchmark_prompts()]
    return _mean(np.array([np.mean(named == kind) for kind in asked]))


def _prompt_pair(prompt: str) -> tuple[str, str]:
    words = prompt.lower().replace(",", " ").split()
    pairs = [pair for pair in captions.all_pairs() if pair[0] in words and pair[1] in words]
    if len(pairs) != 1:
        raise UserError(f"The judge knows no single colour and kind in the prompt {prompt!r}.")
    return pairs[0]


def _pair(pictures: dataset.Pictures) -> np.ndarray:
    return pictures.color.astype(int) * len(captions.KINDS) + pictures.kind


def _rgb(pictures: dataset.Pictures) -> np.ndarray:
    return pictures.image.astype(np.float32) / 255.0


def _mean(right: np.ndarray) -> float:
    return round(float(np.mean(right)), 4)


def _print_table(numbers: Numbers, indent: str = "") -> None:
    for name, value in numbers.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_table(value, indent + "  ")
        else:
            print(f"{indent}{name:<32} {value}")


if __name__ == "__main__":
    entry.run(main)
