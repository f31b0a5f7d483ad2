"""Reports of the scores, as JSON with all conditions and as Markdown tables."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np

from dreamfusion_jax import __version__
from dreamfusion_jax.evaluation.colors import Colors
from dreamfusion_jax.evaluation.judges import Judge
from dreamfusion_jax.evaluation.score import Score, ScoredRun, means, named, standard_errors
from dreamfusion_jax.evaluation.views import AZIMUTHS_DEG, ELEVATION_DEG

Numbers = dict[str, Any]


def report(judge: Judge, runs: Sequence[ScoredRun], untrained: Score) -> Numbers:
    """Collects judge, views, versions, means and every asset as values that JSON holds.

    Args:
      untrained: the score of the scene before its first step, for the same prompts.
    """
    shared = _shared_settings(runs)
    return {
        "judge": {"name": judge.name, "sha256": judge.sha256},
        "views": {
            "count": len(AZIMUTHS_DEG),
            "azimuths_deg": list(AZIMUTHS_DEG),
            "elevation_deg": ELEVATION_DEG,
            "render_size": judge.render_size,
        },
        "versions": versions(),
        "settings_beside_the_defaults": shared,
        "groups": {
            group: {
                "assets": len(members),
                "mean": named(judge, means(run.score for run in members)),
                "standard_error_over_prompts": named(judge, standard_errors(members)),
                "seconds": _mean_seconds(members),
            }
            for group, members in groups(runs).items()
        },
        "untrained_scene": named(judge, untrained),
        "assets": [_asset(judge, run, shared) for run in runs],
    }


def versions() -> dict[str, str]:
    """Returns the versions on which the numbers depend."""
    return {
        "dreamfusion_jax": __version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
    }


def groups(runs: Sequence[ScoredRun]) -> dict[str, list[ScoredRun]]:
    """Groups the assets: all; if all name a toybox pair, also seen and held-out pairs."""
    by_name = {"all": list(runs)}
    if all(run.held_out is not None for run in runs):
        by_name["seen pairs"] = [run for run in runs if not run.held_out]
        by_name["held-out pairs"] = [run for run in runs if run.held_out]
    return {name: members for name, members in by_name.items() if members}


def summary_table(judge: Judge, runs: Sequence[ScoredRun], untrained: Score) -> str:
    """Formats means and their standard errors over prompts in Markdown.

    A row per metric, by its full name; a column per group of assets, and one for the scene before
    its first step.
    """
    members = groups(runs)
    columns = [
        _cells(judge, means(run.score for run in group), standard_errors(group))
        for group in members.values()
    ]
    columns.append(_cells(judge, untrained))
    rows = [list(row) for row in zip(judge.metrics().values(), *columns, strict=True)]
    rows.append(["assets", *(str(len(group)) for group in members.values()), "-"])
    seconds = (_seconds(_mean_seconds(group)) for group in members.values())
    rows.append(["seconds/asset", *seconds, "-"])
    return _table(["metric", *members, "untrained"], rows)


def asset_table(judge: Judge, runs: Sequence[ScoredRun]) -> str:
    """Formats the scores in Markdown: a row per asset, a column per metric by its short name."""
    rows = [
        [
            run.prompt.replace("|", "\\|"),
            str(run.seed),
            {True: "held out", False: "seen", None: "-"}[run.held_out],
            *_cells(judge, run.score),
            _seconds(run.seconds),
        ]
        for run in runs
    ]
    return _table(["prompt", "seed", "pair", *judge.metrics(), "seconds"], rows)


def color_table(rows: Mapping[str, Colors]) -> str:
    """Formats the color differences in Markdown: a row per work folder, and their mean."""
    cells = [[name, *_color_cells([colors])] for name, colors in rows.items()]
    cells.append(["mean", *_color_cells(list(rows.values()))])
    return _table(["asset", "difference", "lightness", "chroma"], cells)


def color_report(rows: Mapping[str, Colors]) -> Numbers:
    """Collects the color differences, with both mean colors, as values that JSON holds."""
    return {
        "versions": versions(),
        "mean_difference": float(np.mean([colors.difference for colors in rows.values()])),
        "assets": {
            name: {
                "difference": colors.difference,
                "lightness": colors.lightness,
                "chroma": colors.chroma,
                "asset_lab": colors.asset.tolist(),
                "samples_lab": colors.samples.tolist(),
            }
            for name, colors in rows.items()
        },
    }


def _color_cells(rows: Sequence[Colors]) -> list[str]:
    means = np.mean([[c.difference, c.lightness, c.chroma] for c in rows], axis=0)
    return [f"{means[0]:.1f}", *(f"{mean:+.1f}" for mean in means[1:])]


def _asset(judge: Judge, run: ScoredRun, shared: Mapping[str, Any]) -> Numbers:
    own = {name: value for name, value in run.settings.items() if name not in shared}
    row = run._asdict() | {"settings": own}
    del row["score"]
    return row | named(judge, run.score)


def _shared_settings(runs: Sequence[ScoredRun]) -> Numbers:
    """Returns the non-default settings that all runs have in common."""
    first, *rest = [run.settings for run in runs]
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in rest)
    }


def _mean_seconds(runs: Sequence[ScoredRun]) -> float | None:
    known = [run.seconds for run in runs if run.seconds is not None]
    return round(sum(known) / len(known), 1) if known else None


def _cells(judge: Judge, score: Score, errors: Score | None = None) -> list[str]:
    return [
        _cell(field, getattr(score, field), errors and getattr(errors, field))
        for field in judge.metrics()
    ]


def _cell(field: str, value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    if field == "fronts":
        return f"{value:.3g}" if error is None else f"{value:.2f} ± {error:.2f}"
    return f"{100 * value:.1f} %" + ("" if error is None else f" ± {100 * error:.1f}")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table, padded so that it is readable as plain text."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [headings, ["-" * width for width in widths], *rows]
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in padded)
