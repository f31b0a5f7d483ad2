"""R-precision: the share of views for which the prompt's own caption is the likeliest candidate.

As in Dream Fields (Jain et al. 2022) and DreamFusion (Poole et al. 2022, section 4): each view
retrieves one caption by the cosine of CLIP embeddings, and the correct ones are averaged over views
and prompts. The name of each metric holds the judge, the views and the candidates.
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
DIGITS = 4  # of reported numbers


class Score(NamedTuple):
    """The scores of one asset; `Judge.metrics` names each number in full.

    Attributes:
      albedo, shaded, textureless: R-precision, the share of those views that retrieve the caption.
      fronts: how many of the eight azimuths show a front, by the azimuth classifier: ideally one,
        several for a Janus; None where the kind has no front, or is not the toybox's.
    """

    albedo: float
    shaded: float
    textureless: float
    fronts: float | None


class ScoredRun(NamedTuple):
    """One asset, how it was made, and its scores.

    Attributes:
      held_out: whether the toybox was trained without the prompt's (color, kind) pair; None where
        the prompt names none.
      steps: optimization steps.
      seconds: their time by metrics.jsonl; None where it is not recorded.
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
    """Renders and scores the asset of a run."""
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
    """Scores a run's scene before its first step, on average over the prompts.

    A judge finds a caption even for a shapeless ball: this is the baseline of the scores.
    """
    params = run.scene.init(jax.random.key(run.config.train.seed))
    untrained = run._replace(state=run.state._replace(step=jnp.int32(0), params={"scene": params}))
    views = views_of_run(untrained, judge.render_size)
    embeds = judge.embed(np.concatenate(views))
    return means(_score(judge, prompt, views, embeds) for prompt in prompts)


def score_views(judge: Judge, prompt: str, views: AssetViews) -> Score:
    """Scores views of an asset that was made for `prompt`."""
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
    """Computes the share of views, embeds [N, P], whose likeliest candidate is the prompt's own."""
    return share(np.argmax(embeds @ candidates.embeds.T, axis=-1) == candidates.row(prompt))


def _fronts(judge: Judge, prompt: str, albedo: np.ndarray) -> int | None:
    pair = captions.pair_in(prompt)
    if judge.classify_azimuth is None or pair is None or pair[1] not in captions.KINDS_WITH_FRONT:
        return None
    sides = judge.classify_azimuth(albedo, np.full(len(albedo), captions.KINDS.index(pair[1])))
    return int(np.sum(sides == FRONT))


def named(judge: Judge, score: Score) -> dict[str, float | None]:
    """Returns each number under its full name."""
    return {name: getattr(score, field) for field, name in judge.metrics().items()}


def share(is_right: np.ndarray) -> float:
    """Computes the share of true values, to four digits."""
    return round(float(np.mean(is_right)), DIGITS)


def means(scores: Iterable[Score]) -> Score:
    """Averages each number over the assets that have it; None where none has."""
    columns = zip(*scores, strict=True)
    return Score(*(_mean([x for x in column if x is not None]) for column in columns))


def standard_errors(runs: Sequence[ScoredRun]) -> Score:
    """Computes the standard errors of the means over prompts, after averaging over seeds.

    A number that fewer than two prompts have is None.
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
