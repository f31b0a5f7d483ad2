"""One training step and its parts: time, XLA's cost, share of the machine's ceiling, memory.

  python -m tests.benchmarks.step                                   the toybox
  python -m tests.benchmarks.step --preset=sd --prior=DIR --variant= --repeats=2

Every setting of the main program is a flag here, too. DIR may be a full-size pipeline of random
weights (tests.benchmarks.random_pipeline).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.prior import PriorParams
from dreamfusion_jax.distillation.view_prompts import TextTable
from dreamfusion_jax.nerf.view import View
from dreamfusion_jax.runs import loop
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training import step
from dreamfusion_jax.training.state import TrainState, init_state
from tests.benchmarks import measure

HEADERS = ("part", "ms", "GFLOP", "GB", "% of matmul", "% of copy")


class Part(NamedTuple):
    """A program and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def first_dear_step(config: Config) -> int:
    """Returns the first step whose views may be lit and are rendered at full size."""
    return max(config.train.shading_start_step, config.train.half_size_steps)


def parts(run: loop.Run) -> dict[str, Part]:
    """Returns the parts of a step, for one view, each to be compiled by itself."""
    setup, prior_params = run.setup, run.prior_params
    config, scene, prior, objective, _ = setup
    size, now = step.render_size(config, prior), jnp.int32(first_dear_step(config))
    state = init_state(scene, run.optimizer, 0, objective, prior_params)
    params, own = state.scene_params, state.params["objective"]
    draws = step.draw_views(setup, now, jnp.arange(1))
    draw = jax.tree.map(lambda x: x[0], draws)

    def render(params: Any, view: View, half_size: jax.Array) -> jax.Array:
        return scene.render(params, view, size, size, now, draw.render_key, half_size).image

    def encode(prior_params: PriorParams, rgb: jax.Array) -> jax.Array:
        return prior.encode(prior_params, rgb, None)

    def pull_back(
        params: Any,
        prior_params: PriorParams,
        view: View,
        half_size: jax.Array,
        residual: jax.Array,
    ) -> Any:
        def latent(params: Any) -> jax.Array:
            return encode(prior_params, render(params, view, half_size)[None])

        return jax.vjp(latent, params)[1](residual)

    full, half = jnp.asarray(False), jnp.asarray(True)
    unlit = draw.view._replace(ambient=jnp.float32(1.0), diffuse=jnp.float32(0.0))
    lit = draw.view._replace(ambient=jnp.float32(0.3), diffuse=jnp.float32(0.7))
    image = jax.jit(render)(params, unlit, full)[None]
    z = jax.jit(encode)(prior_params, image)
    batch = step.make_batch(setup, run.table, draws, z.astype(jnp.float32), now)

    def update(params: Any, grads: Any, opt_state: Any) -> Any:
        return run.optimizer.update(grads, opt_state, params)

    return {
        "render, unlit": Part(render, (params, unlit, full)),
        "render, lit": Part(render, (params, lit, full)),
        "encode": Part(encode, (prior_params, image)),
        "U-Net, guided": Part(objective.gradient, (own, prior_params, batch)),
        "render + encode + pull-back, unlit": Part(
            pull_back, (params, prior_params, unlit, full, z)
        ),
        "render + encode + pull-back, lit": Part(pull_back, (params, prior_params, lit, full, z)),
        "the same of half the side, unlit": Part(pull_back, (params, prior_params, unlit, half, z)),
        "optimizer": Part(update, (state.params, state.params, state.opt_state)),
    }


def step_arguments(
    run: loop.Run, first: int
) -> tuple[step.DeviceInput, TrainState, PriorParams, TextTable]:
    """Returns the arguments of `run.step` at step `first` of an untrained scene."""
    config, scene, _, objective, _ = run.setup
    state = init_state(scene, run.optimizer, config.train.seed, objective, run.prior_params)
    state = state._replace(step=jnp.int32(first))
    shared = step.replicate((state, run.prior_params, run.table), run.devices)
    return step.place_input(run.devices), *shared


def training(run: loop.Run, first: int) -> Callable[[], TrainState]:
    """Returns the run's compiled step from step `first` on; each call takes one step."""
    device, state, *frozen = step_arguments(run, first)

    def advance() -> TrainState:
        nonlocal state
        state, _ = run.step(device, state, *frozen)
        return state

    return advance


def whole_step(run: loop.Run, repeats: int) -> list[float]:
    """Returns the seconds of each of `repeats` of the costliest steps."""
    return measure.seconds(training(run, first_dear_step(run.setup.config)), repeats)


def main(_: list[str]) -> None:
    repeats = flags.FLAGS.repeats
    run = loop.prepare(configs.config_from_flags(), SCHEMES)
    dtype = jax.tree.leaves(run.prior_params["unet"])[0].dtype
    ceilings = measure.ceilings(dtype)
    times = whole_step(run, max(repeats, 2))
    peak = measure.peak_gigabytes()
    rows, numbers = [], {}
    for name, part in parts(run).items():
        cost = measure.xla_cost(part.function, *part.arguments)
        jitted = jax.jit(part.function)
        ms = measure.median_ms(lambda: jitted(*part.arguments), repeats)  # noqa: B023
        of_product = 100.0 * cost["gflop"] / (ms * 1e-3) / ceilings.gflops
        of_copy = 100.0 * cost["gbyte"] / (ms * 1e-3) / ceilings.gbytes
        rows.append((name, ms, cost["gflop"], cost["gbyte"], of_product, of_copy))
        numbers[name] = dict(zip(HEADERS[1:], rows[-1][1:], strict=True))
    mean = 1e3 * sum(times) / len(times)
    print(f"{measure.machine()}, prior in {jnp.dtype(dtype).name}")
    print(f"ceilings: {ceilings.gflops:.0f} GFLOP/s (product), {ceilings.gbytes:.1f} GB/s (copy)")
    print(measure.table(HEADERS, rows))
    print(f"whole step: {mean:.1f} ms on average over {len(times)} steps; peak {peak:.2f} GB")
    whole = {"ms": mean, "all_ms": [1e3 * t for t in times], "peak_gb": peak}
    measure.write_json(
        flags.FLAGS.json,
        {"dtype": jnp.dtype(dtype).name, **ceilings._asdict(), "step": whole, "parts": numbers},
    )


if __name__ == "__main__":
    configs.define_flags()
    flags.FLAGS.set_default("prompt", "a red chair")
    flags.DEFINE_integer("repeats", 20, "calls that are timed, of each part")
    flags.DEFINE_string("json", "", "also write the numbers to this file")
    app.run(main, flags_parser=configs.parse_flags)
