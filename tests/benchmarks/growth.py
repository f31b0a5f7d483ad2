"""How time and memory of the toybox's step grow with what it is asked for.

  python -m tests.benchmarks.growth --output=workdir/growth

Each setting is measured in a process of its own, whose peak memory is then its own. Makes a table,
the same as JSON, and a plot.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from absl import app, flags

from dreamfusion_jax import config as configs
from dreamfusion_jax.training import loop
from tests.benchmarks import measure
from tests.benchmarks.step import whole_step

MODULE = "tests.benchmarks.growth"
# Each axis with its default, among the values tried. The latent is a fourth of the prior's picture.
AXES: Mapping[str, tuple[int, ...]] = {
    "render_size": (16, 32, 64, 96, 128),
    "fine_samples": (5, 10, 20, 40, 80),
    "views_per_device": (1, 2, 4, 8),
    "prior_size": (32, 64, 96, 128),
}
LABELS = {
    "render_size": "side of the render, pixels",
    "fine_samples": "samples a ray",
    "views_per_device": "views a step",
    "prior_size": "side of the prior's picture, pixels",
}


def measure_here() -> dict[str, float]:
    """The step as the flags have it."""
    config = configs.config_from_flags()
    run = loop.prepare(config)
    size = flags.FLAGS.prior_size
    if size:
        prior = run.prior
        latent = (*(side * size // prior.image_size for side in prior.latent_shape[:2]), 4)
        run = run._replace(prior=prior._replace(image_size=size, latent_shape=latent))
    times = whole_step(config, run, flags.FLAGS.repeats)
    return {"ms": 1e3 * statistics.fmean(times), "gb": measure.peak_gigabytes()}


def measure_apart(axis: str, value: int) -> dict[str, float]:
    # The render keeps its size while the prior's picture grows.
    fixed = ["--render_size=64"] if axis == "prior_size" else []
    command = [sys.executable, "-m", MODULE, "--one", f"--{axis}={value}", *fixed]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(curves: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(13, 3.2), layout="constrained")
    for panel, (axis, points) in zip(panels, curves.items(), strict=True):
        values = [point["value"] for point in points]
        panel.plot(values, [point["ms"] for point in points], "o-", label="time, ms")
        panel.plot(values, [1e3 * point["gb"] for point in points], "s--", label="memory, MB")
        panel.set(xlabel=LABELS[axis], xscale="log", yscale="log", xticks=values)
        panel.set_xticklabels(values)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=100)


def main(_: list[str]) -> None:
    if flags.FLAGS.one:
        print(json.dumps(measure_here()))
        return
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    curves: dict[str, Any] = {}
    for axis, values in AXES.items():
        curves[axis] = [{"value": value, **measure_apart(axis, value)} for value in values]
        rows = [tuple(point.values()) for point in curves[axis]]
        print(measure.table((LABELS[axis], "ms", "GB"), rows), flush=True)
    measure.write_json(str(folder / "growth.json"), curves)
    plot(curves, folder / "growth.png")


if __name__ == "__main__":
    configs.define_flags()
    flags.FLAGS.set_default("prompt", "a red chair")
    flags.DEFINE_boolean("one", False, "measure the settings given, alone (it calls itself)")
    flags.DEFINE_integer("prior_size", 0, "side of the prior's picture (0: its own)")
    flags.DEFINE_integer("repeats", 20, "steps that are timed")
    flags.DEFINE_string("output", "workdir/growth", "folder of the table and the plot")
    app.run(main, flags_parser=configs.parse_flags)
