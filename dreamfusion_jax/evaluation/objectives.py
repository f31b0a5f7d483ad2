"""Compares the objectives on one prior, scene, seed and set of prompts.

Each has its best settings first, chosen among a few on prompts that the comparison does not use;
then as many steps as the others; then as much time as SDS. What is finished is not made again: all
is read from the folders of the runs, and the choices and numbers of steps are written down once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.evaluation import benchmark_runner
from dreamfusion_jax.evaluation.chroma import mean_chroma
from dreamfusion_jax.evaluation.judges import Judge
from dreamfusion_jax.evaluation.score import Score, means, named, score_views
from dreamfusion_jax.evaluation.views import AssetViews, open_run, views_of_run
from dreamfusion_jax.runs import metrics
from dreamfusion_jax.runs.sampling import Guidance, draw_samples, open_sampler
from dreamfusion_jax.toybox import captions

REFERENCE = "sds"  # whose time the others get
KINDS = {"equal_steps": "As many steps", "equal_time": "As much time"}
_AT = ("--guidance_scale=3", "--guidance_scale=6", "--guidance_scale=12")
_LINEAR = ("--time_schedule=linear", "--t_max_start=0.98", "--t_max_end=0.25")
# objective -> the settings to choose from. CSD has no scale: what matters is against which noise.
CANDIDATES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sds": tuple((at,) for at in _AT),
    "csd": ((), ("--weighting=one",), ("--t_max_end=0.5",)),
    "nfsd": tuple((at,) for at in _AT),
    "ism": tuple((at,) for at in _AT),
    "sdi": tuple((*_LINEAR, at) for at in _AT),
    "asd": tuple((at,) for at in _AT),
    "vsd": tuple((at,) for at in _AT),
    "sds_without_baseline": tuple((at,) for at in _AT),
    "full": tuple((at,) for at in _AT),
}
COMPARED = tuple(name for name in CANDIDATES if name not in ("sds_without_baseline", "full"))
SAMPLING_STEPS, SAMPLING_GUIDANCE = 25, 6.0


class Measured(NamedTuple):
    """What is measured of one objective.

    Attributes:
      scores, chroma: by prompt; of the asset's views.
      steps: of each asset.
      seconds_per_step: without the compilation.
      peak_bytes: of the process, or of its device, after the first asset's steps.
    """

    scores: dict[str, Score]
    chroma: dict[str, float]
    steps: int
    seconds_per_step: float
    peak_bytes: float


class Comparison(NamedTuple):
    """A comparison of objectives.

    Attributes:
      settings: objective -> the flags of its runs.
      measured: kind of `KINDS` -> objective -> what is measured.
      views: kind -> objective -> prompt -> the asset's views.
    """

    settings: dict[str, list[str]]
    measured: dict[str, dict[str, Measured]]
    views: dict[str, dict[str, dict[str, AssetViews]]]


def compare(
    workdir: Path,
    prompts: Sequence[str],
    others: Sequence[str],
    names: Sequence[str],
    judge: Judge,
    extra: Sequence[str],
) -> Comparison:
    """Makes the missing assets of the objectives `names`, the reference first; measures all.

    Args:
      others: the prompts on which settings are chosen.
      extra: further flags of all runs.
    """
    result = Comparison({}, {kind: {} for kind in KINDS}, {kind: {} for kind in KINDS})

    def measure(kind: str, name: str, flags: Sequence[str]) -> None:
        print(f"{KINDS[kind]}: {name}", flush=True)
        of = measured(workdir / kind / name, prompts, flags, judge)
        result.measured[kind][name], result.views[kind][name] = of

    for name in names:
        own = settings_of(workdir, name, others, judge, extra)
        result.settings[name] = [*own, *extra]
        measure("equal_steps", name, result.settings[name])
    for name in names:
        if name == REFERENCE:
            result.measured["equal_time"][name] = result.measured["equal_steps"][name]
            result.views["equal_time"][name] = result.views["equal_steps"][name]
            continue
        steps = steps_for_time(workdir, name, result.measured["equal_steps"])
        measure("equal_time", name, [*result.settings[name], f"--steps={steps}"])
    return result


def settings_of(
    workdir: Path, name: str, prompts: Sequence[str], judge: Judge, extra: Sequence[str]
) -> list[str]:
    """Returns an objective's best settings, found on `prompts` unless they are written down.

    Best is the highest sum of R-precision in color and without texture. What each of the settings
    scored is in <workdir>/search/<name>.json.
    """
    written = workdir / "search" / f"{name}.json"
    if not written.exists():
        tried = []
        for i, candidate in enumerate(CANDIDATES[name]):
            flags = [f"--objective={name}", *candidate]
            folders = benchmark_runner.make_assets(
                prompts, workdir / "search" / name / str(i), arguments=[*flags, *extra]
            )
            score = means(_score(judge, p, f)[0] for p, f in zip(prompts, folders, strict=True))
            tried.append({"settings": flags, **score._asdict()})
        written.write_text(json.dumps({"prompts": list(prompts), "tried": tried}, indent=2) + "\n")
    tried = json.loads(written.read_text())["tried"]
    return max(tried, key=lambda row: row["albedo"] + row["textureless"])["settings"]


def steps_for_time(workdir: Path, name: str, of: Mapping[str, Measured]) -> int:
    """Returns how many steps take as long as the reference's; written down, as timings vary."""
    written = workdir / "equal_time" / f"{name}.json"
    if not written.exists():
        share = of[REFERENCE].seconds_per_step / of[name].seconds_per_step
        steps = max(round(of[REFERENCE].steps * share), 1)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps({"steps": steps}) + "\n")
    return json.loads(written.read_text())["steps"]


def measured(
    folder: Path, prompts: Sequence[str], flags: Sequence[str], judge: Judge
) -> tuple[Measured, dict[str, AssetViews]]:
    """Makes an objective's missing assets in `folder`; returns the measurements and the views."""
    folders = benchmark_runner.make_assets(prompts, folder, arguments=flags)
    pairs = {p: _score(judge, p, f) for p, f in zip(prompts, folders, strict=True)}
    lines = metrics.read_metrics(Path(folders[0]) / metrics.FILE)
    return Measured(
        {p: score for p, (score, _) in pairs.items()},
        {p: mean_chroma(views.shaded) for p, (_, views) in pairs.items()},
        int(lines[-1]["step"]),
        seconds_per_step(lines),
        lines[-1].get("peak_memory_bytes", math.nan),
    ), {p: views for p, (_, views) in pairs.items()}


def seconds_per_step(lines: list[dict[str, float]]) -> float:
    """Returns the time of a step: the median between two lines of metrics, without what is rare,
    as compiling and previews.

    A run of one line has only the mean since its start.
    """
    seconds, steps = (np.array([line[name] for line in lines]) for name in ("seconds", "step"))
    if len(lines) == 1:
        return float(seconds[0] / steps[0])
    return float(np.median(np.diff(seconds) / np.diff(steps)))


def _score(judge: Judge, prompt: str, folder: Any) -> tuple[Score, AssetViews]:
    views = views_of_run(open_run(folder), judge.render_size)
    return score_views(judge, prompt, views), views


def prior_chroma(prompts: Sequence[str]) -> dict[str, float]:
    """Returns the mean chroma of the toybox's own samples of each prompt, one from each azimuth."""
    sampler, guidance = open_sampler(PriorOptions()), Guidance(SAMPLING_GUIDANCE)
    worded = [f"{prompt}, {phrase}" for prompt in prompts for phrase in captions.AZIMUTH_PHRASES]
    images = np.concatenate(draw_samples(sampler, worded, guidance, 1, SAMPLING_STEPS, seed=0))
    split = np.split(images, len(prompts))
    return {prompt: mean_chroma(x) for prompt, x in zip(prompts, split, strict=True)}


def as_json(judge: Judge, result: Comparison) -> dict[str, Any]:
    """Returns settings and measurements, with the scores under their full names."""

    def row(of: Measured) -> dict[str, Any]:
        scores = {prompt: named(judge, score) for prompt, score in of.scores.items()}
        return {**of._asdict(), "scores": scores}

    rows = {k: {name: row(of) for name, of in x.items()} for k, x in result.measured.items()}
    return {"settings": result.settings, **rows}


def table(of: Mapping[str, Measured], samples: Mapping[str, float]) -> str:
    """Formats the means over the prompts with their standard errors, a row per objective.

    Args:
      samples: the chroma of the prior's own samples by prompt.
    """
    lines = [
        "| objective | steps | R-precision, color | R-precision, textureless | fronts of 8"
        " | chroma / samples' | s / step | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    percent = lambda x: f"{100 * x:.1f}"  # noqa: E731
    for name, row in of.items():
        scores = row.scores.values()
        fronts = [float(s.fronts) for s in scores if s.fronts is not None]
        ratios = [row.chroma[prompt] / samples[prompt] for prompt in row.chroma]
        cells = (
            f"{row.steps:,}",
            with_error([s.albedo for s in scores], percent) + " %",
            with_error([s.textureless for s in scores], percent) + " %",
            with_error(fronts, "{:.2f}".format),
            with_error(ratios, "{:.2f}".format),
            f"{row.seconds_per_step:.3g}",
            f"{row.peak_bytes / 1e9:.2f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_error(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Formats a mean over prompts and, of two or more, its standard error; "-" without any."""
    if not values:
        return "-"
    mean = form(float(np.mean(values)))
    if len(values) < 2:
        return mean
    return f"{mean} ± {form(float(np.std(values, ddof=1)) / math.sqrt(len(values)))}"
