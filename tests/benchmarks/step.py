"""One training step and its parts: time, what XLA counts, share of the machine's ceiling, memory.

  python -m tests.benchmarks.step                                   the toybox
  python -m tests.benchmarks.step --preset=sd --prior=DIR --variant= --repeats=2

Every setting of the main program is a flag here, too. DIR may be a full-size pipeline of random
weights (tests.benchmarks.random_pipeline).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from dreamfusion_jax import config as configs
from dreamfusion_jax.config import Config
from dreamfusion_jax.distillation import latent_gradient
from dreamfusion_jax.nerf.scene import View
from dreamfusion_jax.training import loop, step, views
from dreamfusion_jax.training.state import TrainState, init_state
from tests.benchmarks import measure

HEADERS = ("part", "ms", "GFLOP", "GB", "% of matmul", "% of copy")


class Part(NamedTuple):
    """A program and what it is called with."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def first_dear_step(config: Config) -> int:
    """From here views may be lit and are rendered at their whole size."""
    return max(config.train.shading_start_step, config.train.half_size_steps)


def parts(config: Config, run: loop.Run) -> dict[str, Part]:
    """The pieces of a step, for one view, each compiled by itself."""
    scene, prior = run.scene, run.prior
    size, now = step.render_size(config, prior), jnp.int32(first_dear_step(config))
    params = scene.init(jax.random.key(0))
    draw = views.draw_view(config, now, jnp.int32(0))

    def rendered(params: Any, view: View) -> jax.Array:
        return scene.render(params, view, size, size, now, draw.render_key).image

    def latent(params: Any, weights: Any, view: View) -> jax.Array:
        return prior.encode(weights, rendered(params, view)[None], None)

    def pulled(params: Any, weights: Any, view: View, residual: jax.Array) -> Any:
        return jax.vjp(lambda params: latent(params, weights, view), params)[1](residual)

    whole = draw.view._replace(half_size=jnp.asarray(False))
    unlit = whole._replace(ambient=jnp.float32(1.0), diffuse=jnp.float32(0.0))
    lit = whole._replace(ambient=jnp.float32(0.3), diffuse=jnp.float32(0.7))
    half = unlit._replace(half_size=jnp.asarray(True))
    weights = run.weights
    image = jax.jit(rendered)(params, unlit)
    z = jax.jit(prior.encode, static_argnums=2)(weights, image[None], None)
    noised = step.add_draws(config, run.table, jax.tree.map(lambda x: x[None], draw), z)
    denoise = functools.partial(latent_gradient, prior, options=step.distillation(config.prior))
    optimizer_state = run.optimizer.init(params)

    def update(params: Any, grads: Any, opt_state: Any) -> Any:
        return run.optimizer.update(grads, opt_state, params)

    return {
        "render, unlit": Part(rendered, (params, unlit)),
        "render, lit": Part(rendered, (params, lit)),
        "encode": Part(
            lambda weights, rgb: prior.encode(weights, rgb, None), (weights, image[None])
        ),
        "U-Net, guided": Part(denoise, (weights, noised)),
        "render + encode + pull-back, unlit": Part(pulled, (params, weights, unlit, z)),
        "render + encode + pull-back, lit": Part(pulled, (params, weights, lit, z)),
        "the same of half the side, unlit": Part(pulled, (params, weights, half, z)),
        "optimiser": Part(update, (params, params, optimizer_state)),
    }


def training(config: Config, run: loop.Run, first: int) -> Callable[[], TrainState]:
    """The training's own program from step `first` on: each call takes one step."""
    train_step = step.make_train_step(config, run.scene, run.prior, run.optimizer, run.devices)
    index = step.place_input(run.devices)
    state = init_state(run.scene, run.optimizer, config.train.seed)
    state = state._replace(step=jnp.int32(first))
    state, weights, table = step.replicate((state, run.weights, run.table), run.devices)

    def advance() -> TrainState:
        nonlocal state
        state, _ = train_step(index, state, weights, table)
        return state

    return advance


def whole_step(config: Config, run: loop.Run, repeats: int) -> list[float]:
    """Seconds of each of `repeats` of the dearest steps."""
    return measure.seconds(training(config, run, first_dear_step(config)), repeats)


def main(_: list[str]) -> None:
    config, repeats = configs.config_from_flags(), flags.FLAGS.repeats
    run = loop.prepare(config)
    dtype = jax.tree.leaves(run.weights["unet"])[0].dtype
    ceilings = measure.ceilings(dtype)
    times = whole_step(config, run, max(repeats, 2))
    peak = measure.peak_gigabytes()
    rows, numbers = [], {}
    for name, part in parts(config, run).items():
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
