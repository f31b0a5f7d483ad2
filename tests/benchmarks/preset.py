"""The effect of a preset on a scene within its first steps: to run before renting a GPU.

  python -m tests.benchmarks.preset --preset=sd --prior=toybox
  python -m tests.benchmarks.preset --preset=paper --seeds=0 --observe=500
  python -m tests.benchmarks.preset --preset=sd --prior=DIR --variant= --size=64

Prints, and writes to --output as JSON and as an image:

- the change of the raw density after ten optimizer steps on random cotangents, at the preset's
  highest learning rate: where it is about 10, the density's activation is lost within a few steps;
- each loss's gradient, in the field's parameters, as a share of the residual's;
- opacity and gradient over --observe steps of the training's own program, for each of --seeds.

Every setting of the main program is a flag here, too. The steps are those of the whole run, so the
preset's schedules are at their beginning; only light begins early, at --lit_from.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.prior import PriorParams
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import albedo_view
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training import step
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import init_state
from tests.benchmarks import measure
from tests.benchmarks.step import step_arguments

TERMS = ("orientation", "opacity", "distortion", "entropy")
IMAGE_SIZE = 64
AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
POINTS, COTANGENTS = 4096, 10
SHARE_DRAWS = 8


class Observed(NamedTuple):
    """The history and the final state of one scene.

    Attributes:
      opacity: [N] mean opacity of the views that each step drew.
      gradient: [N] norm of the gradient in the field's parameters.
      skipped: steps whose numbers were not finite.
      mean, border: opacity over whole images from the middle of the training cameras, and over
        their outermost pixels.
      images: [4, size, size, 3] albedo over white.
      params: the scene's and the objective's.
    """

    opacity: np.ndarray
    gradient: np.ndarray
    skipped: int
    mean: float
    border: float
    images: np.ndarray
    params: Any


def short_config(config: Config, size: int, lit_from: int, seed: int) -> Config:
    """Returns the run's configuration with small renders, early light and another seed."""
    train = dataclasses.replace(
        config.train,
        render_size=(size,),
        shading_start_step=min(lit_from, config.train.shading_start_step),
        seed=seed,
    )
    return dataclasses.replace(config, train=train)


def observe(config: Config, run: loop.Run, steps: int, image_size: int = IMAGE_SIZE) -> Observed:
    """Takes the first `steps` steps of a run, then renders the scene from four sides."""
    setup = run.setup._replace(config=config)
    train_step = step.make_train_step(setup, run.optimizer, run.devices)
    device, state, *frozen = step_arguments(run._replace(setup=setup), 0)
    history = []
    for _ in range(steps):
        state, metrics = train_step(device, state, *frozen)
        history.append((metrics["opacity_mean"], metrics["gradient_norm/field"]))
    opacity, gradient = np.array(jax.device_get(history)).T
    params = jax.device_get(state.params)
    images, opacities = _render_sides(config, run.scene, params["scene"], steps, image_size)
    edges = [opacities[:, 0], opacities[:, -1], opacities[:, :, 0], opacities[:, :, -1]]
    return Observed(
        opacity,
        gradient,
        int(state.skipped),
        float(opacities.mean()),
        float(np.mean(edges)),
        images,
        params,
    )


def _render_sides(
    config: Config, scene: Scene, params: Any, at: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    orbit = images.training_orbit(config.camera)
    drawn = [
        images.render_image(
            scene, params, albedo_view(orbit.camera(azimuth), jnp.ones(3)), size, at
        )
        for azimuth in AZIMUTHS_DEG
    ]
    return np.stack([d.image for d in drawn]), np.stack([d.opacity for d in drawn])


def raw_change(config: Config, scene: Scene) -> float:
    """Returns the raw density's mean change over ten steps on random cotangents."""
    optimizer_config = dataclasses.replace(config.optimizer, warmup_steps=0)
    optimizer = make_optimizer(optimizer_config, config.train.steps)
    key = jax.random.key(0)
    points = config.scene.bound_radius * _points_in_ball(jax.random.fold_in(key, 0))
    start = {"scene": scene.init(jax.random.fold_in(key, 1))}

    def outputs(params: Any) -> tuple[jax.Array, jax.Array]:
        out = scene.query(params["scene"], points, jnp.int32(0))
        return raw_density(config.scene, out.density), out.albedo

    def advance(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        out, pull = jax.vjp(outputs, params)
        keys = jax.random.split(key, len(out))
        cotangent = tuple(jax.random.normal(k, x.shape) for k, x in zip(keys, out, strict=True))
        (gradient,) = pull(cotangent)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def change(params: Any) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, 2), COTANGENTS)
        (moved, _), _ = jax.lax.scan(advance, (params, optimizer.init(params)), keys)
        return jnp.mean(jnp.abs(outputs(moved)[0] - outputs(params)[0]))

    return float(change(start))


def raw_density(config: SceneOptions, density: jax.Array) -> jax.Array:
    """Inverts the density's activation (not its blob, which cancels in a difference)."""
    activated = jnp.maximum(density / config.density_scale, 1e-30)
    if config.density_activation == "exp":
        return jnp.log(activated)
    return activated + jnp.log(-jnp.expm1(-activated))


def _points_in_ball(key: jax.Array) -> jax.Array:
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, (POINTS, 3))
    direction /= jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return direction * jax.random.uniform(radius_key, (POINTS, 1)) ** (1.0 / 3.0)


def gradient_shares(config: Config, run: loop.Run, params: Any, at: int) -> dict[str, float]:
    """Returns |gradient of each loss| / |gradient of the residual| in the field at step `at`.

    Norms are root mean squares over `SHARE_DRAWS` steps' draws. "residual" is that norm itself.

    Args:
      params: the scene's and the objective's.
    """
    residual = _gradient_norm(config, run, params, at, of_residual=True)
    shares = {"residual": residual}
    for term in TERMS:
        alone = _with_this_term_alone(config, term)
        weights = dataclasses.asdict(alone.train)
        if weights[f"{term}_weight"] or (term == "orientation" and weights["orientation_start"]):
            shares[term] = _gradient_norm(alone, run, params, at, of_residual=False) / residual
    return shares


def _with_this_term_alone(config: Config, term: str) -> Config:
    off = {f"{name}_weight": 0.0 for name in (*TERMS, "interlevel") if name != term}
    if term != "orientation":
        off["orientation_start"] = 0.0
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **off))


def _gradient_norm(config: Config, run: loop.Run, params: Any, at: int, of_residual: bool) -> float:
    """Returns the norm of the field's gradient by the residual, or by the regularizers, alone."""
    setup, now, count = (
        run.setup._replace(config=config),
        jnp.int32(at),
        config.train.views_per_device,
    )

    @jax.jit
    def norm(params: Any, prior_params: PriorParams, number: jax.Array) -> jax.Array:
        # The views of one device's step; another number gives other views.
        draws = step.draw_views(setup, now, number * count + jnp.arange(count))
        forward = step.make_forward(setup, prior_params, now, draws)
        (z, penalty), pull, _ = jax.vjp(forward, params["scene"], has_aux=True)
        residual = jnp.zeros_like(z)
        if of_residual:
            batch = step.make_batch(setup, run.table, draws, z, now)
            residual, _ = setup.objective.gradient(params["objective"], prior_params, batch)
        (gradient,) = pull((residual / len(z), jnp.full_like(penalty, not of_residual)))
        return optax.tree.norm(gradient["field"])

    norms = [float(norm(params, run.prior_params, jnp.int32(n))) for n in range(SHARE_DRAWS)]
    return float(np.sqrt(np.mean(np.square(norms))))


def main(_: list[str]) -> None:
    values = flags.FLAGS
    given = {}
    if values.prior == "toybox":  # a preset for real weights has other view words
        given = {"variant": "", "view_words": "toybox"}
    config = configs.config_from_flags(**given)
    folder = Path(values.output)
    folder.mkdir(parents=True, exist_ok=True)
    run = loop.prepare(config, SCHEMES)
    change = raw_change(config, run.scene)
    print(f"raw density, mean change over {COTANGENTS} steps: {change:.3g}", flush=True)
    report: dict[str, Any] = {"preset": values.preset, "raw_change": change, "seeds": {}}
    rows, strips = [], []
    for seed in map(int, values.seeds):
        short = short_config(config, values.size, values.lit_from, seed)
        observed = observe(short, run, values.observe)
        strips.append(np.concatenate(list(observed.images), axis=1))
        gradient = float(observed.gradient[-10:].mean())
        rows.append((seed, observed.mean, observed.border, gradient, observed.skipped))
        report["seeds"][seed] = {
            "opacity": observed.opacity.tolist(),
            "field_gradient": observed.gradient.tolist(),
            "mean_opacity": observed.mean,
            "border_opacity": observed.border,
            "skipped": observed.skipped,
        }
        print(measure.table(("seed", "opacity", "border", "gradient", "skipped"), rows), flush=True)
    untrained = init_state(run.scene, run.optimizer, short.train.seed, run.setup.objective).params
    for name, params, at in (
        ("first step", untrained, 0),
        (f"step {values.observe}", observed.params, values.observe),
    ):
        shares = gradient_shares(short, run, params, at)
        report[f"shares, {name}"] = shares
        print(f"gradient of the field at the {name}, as a share of the residual's: {shares}")
    write_png(folder / f"{values.preset}.png", images.to_uint8(np.concatenate(strips)))
    measure.write_json(str(folder / f"{values.preset}.json"), report)
    print(f"In {folder}: {values.preset}.png, {values.preset}.json")


if __name__ == "__main__":
    configs.define_flags()
    flags.FLAGS.set_default("prompt", "a red chair")
    flags.DEFINE_integer("observe", 150, "steps to take")
    flags.DEFINE_integer("lit_from", 100, "light begins at this step, if it would begin later")
    flags.DEFINE_integer("size", 32, "side of the training renders, in pixels")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the scenes")
    flags.DEFINE_string("output", "workdir/presets", "folder of the table and the image")
    app.run(main, flags_parser=configs.parse_flags)
