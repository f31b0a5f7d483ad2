"""How time and memory of the toybox's step grow with its settings.

  python -m tests.benchmarks.growth --output=workdir/growth

Each setting is measured in a process of its own, whose peak memory is then its own. Makes a table,
the same as JSON, and a plot.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from absl import app, flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.open_prior import TOYBOX
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from tests.benchmarks import measure
from tests.benchmarks.step import whole_step

MODULE = "tests.benchmarks.growth"
# Each axis with its default, among the values tried.
AXES: Mapping[str, tuple[int, ...]] = {
    "render_size": (16, 32, 64, 96, 128),
    "fine_samples": (5, 10, 20, 40, 80),
    "views_per_device": (1, 2, 4, 8),
    "latent_size": (8, 16, 24, 32),
}
LABELS = {
    "render_size": "side of the render, pixels",
    "fine_samples": "samples a ray",
    "views_per_device": "views a step",
    "latent_size": "side of the latent",
}


def measure_here() -> dict[str, float]:
    """Measures the step with the settings of the flags."""
    run = loop.prepare(configs.config_from_flags(), SCHEMES)
    times = whole_step(run, flags.FLAGS.repeats)
    return {"ms": 1e3 * statistics.fmean(times), "gb": measure.peak_gigabytes()}


def measure_apart(axis: str, value: int) -> dict[str, float]:
    """Measures the step with one setting changed, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--{axis}={value}"]
        if axis == "latent_size":  # the same weights, the same render
            arguments = [f"--prior={prior_of_size(Path(folder) / 'prior', value)}"]
            arguments += ["--render_size=64"]
        repeats = f"--repeats={flags.FLAGS.repeats}"
        command = [sys.executable, "-m", MODULE, "--one", repeats, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prior_of_size(folder: Path, latent_size: int) -> Path:
    """Copies the toybox with another latent size in its config."""
    shutil.copytree(TOYBOX, folder)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": latent_size}))
    return folder


def plot(curves: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Plots time and memory over each setting."""
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
    flags.DEFINE_integer("repeats", 20, "steps that are timed")
    flags.DEFINE_string("output", "workdir/growth", "folder of the table and the plot")
    app.run(main, flags_parser=configs.parse_flags)
