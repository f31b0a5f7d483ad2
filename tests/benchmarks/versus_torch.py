"""The toybox's training step beside the same step in torch, in turn, in one process.

  python -m tests.benchmarks.versus_torch --json=versus_torch.json
  python -m tests.benchmarks.versus_torch --prior=DIR --variant= --render_size=64 --scene_steps=1

Both sides get the same weights (a scene's after --scene_steps steps), cameras, samples, noise and
text. First their gradients are compared; then blocks of steps are timed, ours and theirs in turn,
each block with the default's share of lit views, and the median of the blocks' ratios is printed.

The second command takes a full-size Stable Diffusion (tests.benchmarks.random_pipeline). Where JAX
and torch both have a GPU, both use it, with the prior in bfloat16.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.loading.hub import resolve_model
from dreamfusion_jax.diffusion.priors.prior import PriorParams
from dreamfusion_jax.diffusion.schedule import alpha_sigma
from dreamfusion_jax.distillation.objective import draw_noise
from dreamfusion_jax.distillation.view_prompts import TextTable
from dreamfusion_jax.distillation.weighting import timestep_weight
from dreamfusion_jax.nerf.cameras import pixel_rays
from dreamfusion_jax.nerf.fields.density import Sharpening
from dreamfusion_jax.nerf.fields.mip import CovarianceAnnealing
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.open_prior import TOYBOX
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training import step
from dreamfusion_jax.training.state import TrainState
from dreamfusion_jax.training.views import Draw
from tests.benchmarks import measure
from tests.benchmarks.step import training
from tests.benchmarks.torch_step import TorchStep, TorchView

# Two of five views are lit: --lit_probability after --shading_start_step of --steps.
LIT = (False, True, False, True, False)


def draw(setup: step.Setup, now: jax.Array, index: int, lit: bool) -> Draw:
    """Draws one view, leaves [1]; without a key, samples lie in the middle of their strata."""
    drawn = step.draw_views(setup, now, jnp.array([index]))
    diffuse, no = jnp.full(1, 0.7 if lit else 0.0), jnp.zeros(1, bool)
    view = drawn.view._replace(ambient=1.0 - diffuse, diffuse=diffuse, textureless=no)
    return drawn._replace(view=view, render_key=None, half_size=no)


def as_torch(run: loop.Run, drawn: Draw, now: jax.Array) -> TorchView:
    """Converts a view to tensors."""
    config, prior = run.setup.config, run.prior
    size = step.render_size(config, prior)
    view = jax.tree.map(lambda x: x[0], drawn.view)
    batch = step.make_batch(run.setup, run.table, drawn, jnp.zeros((1, *prior.latent_shape)), now)
    # diffusers knows only whole timesteps; ours is rounded alike.
    alpha, sigma = alpha_sigma(prior.schedule, batch.t)
    weight = timestep_weight(
        config.distillation.weighting, alpha, sigma, config.distillation.weight_cap
    )
    index = round(float(batch.t[0]) * (len(prior.schedule.alphas_cumprod) - 1))
    tensor = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
    rays = (tensor(x).reshape(size * size, -1) for x in pixel_rays(view.camera, size, size))
    scene = config.scene
    blur = CovarianceAnnealing(scene.blur_start, scene.blur_end, scene.blur_steps)
    sharpening = Sharpening(
        scene.sharpening, scene.sharpening_density, scene.sharpening_start, scene.sharpening_steps
    )
    return TorchView(
        *rays,
        light=tensor(view.light_position),
        background=tensor(view.background),
        lit=bool(view.diffuse > 0.0),
        ambient=tensor(view.ambient),
        diffuse=tensor(view.diffuse),
        eps=tensor(draw_noise(batch)).permute(0, 3, 1, 2).contiguous(),
        text=torch.cat([tensor(batch.negative.tokens), tensor(batch.cond.tokens)]),
        index=torch.tensor([index]),
        alpha=tensor(alpha[0]),
        sigma=tensor(sigma[0]),
        weight=tensor(weight[0]),
        blur=tensor(blur(now)),
        sharpening=tensor(sharpening(now)),
    )


def make_step(run: loop.Run) -> Callable[..., Any]:
    """Makes the step without its drawing: state, prior params, table, draws -> state, gradient.

    All of them are the same step of the schedules.
    """

    def advance(state: TrainState, prior_params: PriorParams, table: TextTable, draws: Draw) -> Any:
        grads, _ = step.gradients(run.setup, prior_params, table, state, draws)
        after = step.apply_gradients(run.optimizer, state, grads, jnp.asarray(True))
        return after._replace(step=state.step), grads

    return jax.jit(advance)


def trained_state(run: loop.Run, steps: int) -> TrainState:
    """Returns the state after some steps: at its start the scene is only a ball."""
    advance = training(run, first=0)
    for _ in range(steps):
        state = advance()
    return jax.device_get(state)


def gradient_error(ours: Any, theirs: dict[str, np.ndarray]) -> float:
    """Returns the norm of the gradients' difference over the norm of ours."""
    flat = {
        "/".join(part.key for part in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours)
    }
    assert flat.keys() == theirs.keys()
    difference = sum(np.sum((flat[name] - theirs[name]) ** 2.0) for name in flat)
    return float(np.sqrt(difference / sum(np.sum(leaf**2.0) for leaf in flat.values())))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def pairs(
    ours: Callable[[], Any], theirs: Callable[[], Any], count: int
) -> Iterator[tuple[float, float]]:
    """Returns the seconds of each, alternating, after one of each that compiles."""
    ours(), theirs()
    for _ in range(count):
        yield timed(ours), timed(theirs)


def main(_: list[str]) -> None:
    config = configs.config_from_flags()
    run = loop.prepare(config, SCHEMES)
    state = trained_state(run, flags.FLAGS.scene_steps)
    draws = [draw(run.setup, state.step, i, lit) for i, lit in enumerate(LIT)]
    tensors = [as_torch(run, drawn, state.step) for drawn in draws]
    advance = make_step(run)
    errors, numbers = [], {"threads": torch.get_num_threads()}
    how = torch_side(config, run)
    tensors = [TorchView(*(on_device(x, how["device"]) for x in view)) for view in tensors]
    for name, compiled in (("eager", False), ("compiled", True)):
        torch_step = TorchStep(config, state.scene_params, compiled=compiled, **how)
        for drawn, view in zip(draws, tensors, strict=True):
            torch_step.gradient(view)
            _, grads = advance(state, run.prior_params, run.table, drawn)
            errors.append(gradient_error(grads["scene"], torch_step.gradients()))
        numbers[name] = compare(advance, state, run, draws, tensors, torch_step)
        numbers[f"ratio_{name}"] = numbers[name]["ratio"]
    numbers["gradient_error"] = max(errors)
    rows = [(name, *numbers[name].values()) for name in ("eager", "compiled")]
    print(f"largest relative error of the gradients: {max(errors):.1e}")
    print(measure.table(("torch", "ours, ms a step", "torch, ms a step", "ratio"), rows))
    measure.write_json(flags.FLAGS.json, numbers)


def torch_side(config: Config, run: loop.Run) -> dict[str, Any]:
    """Returns torch's device and dtype: those of JAX."""
    if config.prior.prior == "toybox":
        weights = TOYBOX
    else:
        weights = resolve_model(config.prior.prior, config.prior.revision, config.prior.variant)
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, jax.tree.leaves(run.prior_params["unet"])[0].dtype.name)
    return {"weights": weights, "dtype": dtype, "device": device}


def on_device(x: Any, device: str) -> Any:
    return x.to(device) if isinstance(x, torch.Tensor) else x


def compare(
    advance: Callable[..., Any],
    state: TrainState,
    run: loop.Run,
    draws: Sequence[Draw],
    tensors: Sequence[TorchView],
    torch_step: TorchStep,
) -> dict[str, Any]:
    """Times blocks of len(LIT) steps of both."""
    place = jax.device_put((state, run.prior_params, run.table))

    def ours() -> None:
        now, *frozen = place
        for drawn in draws:
            now, _ = advance(now, *frozen, drawn)
        jax.block_until_ready(now)

    def theirs() -> None:
        for view in tensors:
            torch_step.step(view)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    times = np.array(list(pairs(ours, theirs, flags.FLAGS.pairs)))
    ms = 1e3 * np.median(times, axis=0) / len(draws)
    ratio = statistics.median(times[:, 1] / times[:, 0])
    return {"ours_ms": float(ms[0]), "torch_ms": float(ms[1]), "ratio": float(ratio)}


if __name__ == "__main__":
    configs.define_flags()
    flags.FLAGS.set_default("prompt", "a red chair")
    flags.DEFINE_integer("scene_steps", 300, "steps that the scene is trained before", 1)
    flags.DEFINE_integer("pairs", 10, "pairs of blocks that are timed")
    flags.DEFINE_string("json", "", "also write the numbers to this file")
    app.run(main, flags_parser=configs.parse_flags)
