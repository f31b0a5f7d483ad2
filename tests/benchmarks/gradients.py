"""The gradients that SDS simplifies, on the embedded prior: their spread over t, time and memory.

  python -m tests.benchmarks.gradients --output=workdir/gradients

At each t, samples of the prior are noised many times. Printed and plotted: the
variance of SDS with its baseline eps and without it (over the same noise), how far the full
gradient's direction is from SDS's, and what one step of each costs. The table is written as JSON,
too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.distillation.objective import Batch
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.runs.open_prior import TOYBOX
from tests.distillation.conftest import make_batch

PROMPTS = ("a red chair", "a blue car", "a yellow mushroom", "a green house")
TIMES = tuple(np.linspace(0.05, 0.95, 10).round(3))
BATCH, ROUNDS, REPEATS = 16, 4, 10
MODULE = "tests.benchmarks.gradients"

_OUTPUT = flags.DEFINE_string("output", "workdir/gradients", "Folder of the table and the plot.")
_ONLY = flags.DEFINE_enum(
    "only", None, ("sds", "full"), "Measure the cost of this one alone (the program calls itself)."
)


def main(_: list[str]) -> None:
    if _ONLY.value:
        print(json.dumps(cost(_ONLY.value)))
        return
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    # First: a new process counts its parent's memory at its birth among its own peak.
    costs = {name: measure_apart(name) for name in ("sds", "full")}
    rows = spread()
    table = {"device": jax.devices()[0].device_kind, "over_t": rows, "cost": costs}
    (folder / "gradients.json").write_text(json.dumps(table, indent=2) + "\n")
    plot(rows, folder / "gradients.png")
    print("   t  var with  var without  ratio  full: cosine with SDS's mean")
    for row in rows:
        print(
            f"{row['t']:.2f} {row['with_baseline']:9.4f} {row['without_baseline']:12.4f}"
            f" {row['ratio']:6.4f} {row['full_cosine']:6.3f}"
        )
    for name, numbers in costs.items():
        print(
            f"{name}: {numbers['seconds']:.3f} s for {BATCH} views,"
            f" peak {numbers['peak_gb']:.2f} GB"
        )


def spread() -> list[dict[str, float]]:
    """Returns a row for each t: mean variance of a latent's element, w = 1, no guidance."""
    prior, prior_params = load_prior(TOYBOX)
    text, empty = prior.encode_text(PROMPTS), prior.encode_text([""])
    draw = jax.jit(lambda params, key: ddim_sample(prior, params, text, empty, key, 25, 4.0))
    z = draw(prior_params, jax.random.key(0))
    names = {"with": "sds", "without": "sds_without_baseline", "full": "full"}
    functions = {
        key: gradient_of(prior, DistillationOptions(1.0, weighting="one", objective=name))
        for key, name in names.items()
    }
    rows = []
    for t in TIMES:
        drawn: dict[str, list[np.ndarray]] = {key: [] for key in names}
        for i, latent in enumerate(z):
            for turn in range(ROUNDS):
                key = jax.random.fold_in(jax.random.key(i), turn)
                batch = make_batch(
                    jnp.broadcast_to(latent, (BATCH, *latent.shape)),
                    jnp.full(BATCH, t),
                    jax.random.split(key, BATCH),
                    cond=jax.tree.map(lambda x: jnp.stack([x[i]] * BATCH), text),  # noqa: B023
                    negative=empty,
                )
                for name, function in functions.items():
                    drawn[name].append(np.asarray(function(prior_params, batch)))
        grouped = {
            key: np.stack(values).reshape(len(z), ROUNDS * BATCH, -1)
            for key, values in drawn.items()
        }
        variance = {key: float(values.var(1).mean()) for key, values in grouped.items()}
        means = [grouped[key].mean(1) for key in ("with", "full")]
        cosine = np.sum(means[0] * means[1], -1) / np.prod(np.linalg.norm(means, axis=-1), axis=0)
        rows.append(
            {
                "t": float(t),
                "with_baseline": variance["with"],
                "without_baseline": variance["without"],
                "ratio": variance["with"] / variance["without"],
                "full_cosine": float(cosine.mean()),
            }
        )
        print(f"t = {t:.2f} done", file=sys.stderr)
    return rows


def gradient_of(
    prior: Prior, options: DistillationOptions
) -> Callable[[PriorParams, Batch], jax.Array]:
    """Compiles the gradient [B, h, w, c] of an objective without params of its own."""
    objective = make_objective(prior, options)
    return jax.jit(lambda params, batch: objective.gradient({}, params, batch)[0])


def cost(name: str) -> dict[str, float]:
    """Returns the median seconds of one guided gradient for BATCH latents, and peak memory."""
    prior, prior_params = load_prior(TOYBOX)
    text, empty = prior.encode_text([PROMPTS[0]] * BATCH), prior.encode_text([""])
    step = gradient_of(prior, DistillationOptions(6.0, objective=name))
    z_key, noise_key = jax.random.split(jax.random.key(0))
    z = jax.random.normal(z_key, (BATCH, *prior.latent_shape))
    keys = jax.random.split(noise_key, BATCH)
    batch = make_batch(z, jnp.full(BATCH, 0.5), keys, cond=text, negative=empty)
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        jax.block_until_ready(step(prior_params, batch))
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": float(np.median(seconds[1:])), "peak_gb": peak}


def measure_apart(name: str) -> dict[str, float]:
    """Runs `cost` in a process of its own, because peak memory never falls."""
    command = [sys.executable, "-m", MODULE, f"--only={name}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Plots the variance over t on a logarithmic axis."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    t = [row["t"] for row in rows]
    axes.plot(t, [row["with_baseline"] for row in rows], "o-", label="SDS (baseline eps)")
    axes.plot(t, [row["without_baseline"] for row in rows], "s--", label="without the baseline")
    axes.set(xlabel="diffusion time t", ylabel="variance of an element", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
