"""R-precision: of how many views is a prompt's own caption the likeliest of all candidates?

As in Dream Fields (Jain et al. 2022) and DreamFusion (Poole et al. 2022, section 4): each view
retrieves one caption by the cosine of a CLIP's vectors, and what is right is averaged over views
and prompts. Who judges, what is seen and what is chosen among is part of each number's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.evaluation.judges import Candidates, Judge
from dreamfusion_jax.evaluation.views import AssetViews, views_of_run
from dreamfusion_jax.runs import metrics
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.runtime.files import AnyPath
from dreamfusion_jax.toybox import captions

FRONT = captions.AZIMUTH_PHRASES.index("front view")
DIGITS = 4  # of what is told


class Score(NamedTuple):
    """What a judge makes of one asset; `Judge.metrics` names each number in full.

    Attributes:
      albedo, shaded, textureless: R-precision, the share of those views that retrieve the caption.
      fronts: how many of the eight azimuths show a front, by the azimuth classifier: one, if all is
        well, more of a Janus; None where the kind has no front, or is not the toybox's.
    """

    albedo: float
    shaded: float
    textureless: float
    fronts: float | None


class ScoredRun(NamedTuple):
    """One asset, as it was made and judged.

    Attributes:
      held_out: whether the toybox never saw the prompt's (color, kind) pair; None where the prompt
        names none.
      steps: of optimization, and `seconds`, what they took, by its metrics.jsonl; None where that
        does not tell.
      settings: those that differ from the defaults, without prompt, seed and work folder.
    """

    prompt: str
    seed: int
    workdir: str
    held_out: bool | None
    steps: int
    seconds: float | None
    settings: Mapping[str, Any]
    score: Score


def score_run(judge: Judge, workdir: AnyPath, run: SavedRun) -> ScoredRun:
    """Renders and judges the asset of a run."""
    train = run.config.train
    settings = reproduce.diff(run.config, Config())
    pair = captions.pair_in(train.prompt)
    seconds = metrics.spent(metrics.read_metrics(workdir / metrics.FILE)).seconds
    return ScoredRun(
        train.prompt,
        train.seed,
        str(workdir),
        None if pair is None else pair in captions.held_out_pairs(),
        int(run.state.step),
        seconds or None,
        {name: value for name, value in settings.items() if name not in ("seed", "workdir")},
        score_views(judge, train.prompt, views_of_run(run, judge.render_size)),
    )


def score_untrained(judge: Judge, run: SavedRun, prompts: Sequence[str]) -> Score:
    """What the judge makes of a run's scene before its first step, on average over the prompts.

    A judge names even a shapeless ball as something: this is the floor that the scores stand on.
    """
    params = run.scene.init(jax.random.key(run.config.train.seed))
    untrained = run._replace(state=run.state._replace(step=jnp.int32(0), params={"scene": params}))
    views = views_of_run(untrained, judge.render_size)
    embeds = judge.embed(np.concatenate(views))
    return means(_score(judge, prompt, views, embeds) for prompt in prompts)


def score_views(judge: Judge, prompt: str, views: AssetViews) -> Score:
    """What the judge makes of an asset that was made for `prompt`."""
    return _score(judge, prompt, views, judge.embed(np.concatenate(views)))


def _score(judge: Judge, prompt: str, views: AssetViews, embeds: np.ndarray) -> Score:
    albedo, shaded, textureless = np.split(embeds, len(views))
    return Score(
        r_precision(albedo, judge.colored, prompt),
        r_precision(shaded, judge.colored, prompt),
        r_precision(textureless, judge.textureless, prompt),
        _fronts(judge, prompt, views.albedo),
    )


def r_precision(embeds: np.ndarray, candidates: Candidates, prompt: str) -> float:
    """The share of the views, embeds [N, P], whose likeliest candidate is the prompt's own."""
    return share(np.argmax(embeds @ candidates.embeds.T, axis=-1) == candidates.row(prompt))


def _fronts(judge: Judge, prompt: str, albedo: np.ndarray) -> int | None:
    pair = captions.pair_in(prompt)
    if judge.name_side is None or pair is None or pair[1] not in captions.KINDS_WITH_FRONT:
        return None
    sides = judge.name_side(albedo, np.full(len(albedo), captions.KINDS.index(pair[1])))
    return int(np.sum(sides == FRONT))


def named(judge: Judge, score: Score) -> dict[str, float | None]:
    """Each number under its full name."""
    return {name: getattr(score, field) for field, name in judge.metrics().items()}


def share(right: np.ndarray) -> float:
    """The share of what is true, to four digits."""
    return round(float(np.mean(right)), DIGITS)


def means(scores: Iterable[Score]) -> Score:
    """The mean of each number over those assets that have it; None where none has."""
    columns = zip(*scores, strict=True)
    return Score(*(_mean([x for x in column if x is not None]) for column in columns))


def standard_errors(runs: Sequence[ScoredRun]) -> Score:
    """Of those means, over prompts: assets of one prompt that differ by seed count as one.

    None where fewer than two prompts have the number.
    """
    by_prompt: dict[str, list[Score]] = {}
    for run in runs:
        by_prompt.setdefault(run.prompt, []).append(run.score)
    columns = zip(*(means(scores) for scores in by_prompt.values()), strict=True)
    return Score(*(_standard_error([x for x in column if x is not None]) for column in columns))


def _mean(values: list[float]) -> Any:
    return round(float(np.mean(values)), DIGITS) if values else None


def _standard_error(values: list[float]) -> Any:
    if len(values) < 2:
        return None
    return round(float(np.std(values, ddof=1)) / math.sqrt(len(values)), DIGITS)
