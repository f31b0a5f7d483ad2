"""The run: set up, optimise step by step, keep what must not be lost, show what comes out.

The host only counts steps. Per step it starts the device's program and waits for the one before, so
that the bar tells the truth and an interruption is heard at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamfusion_jax import memory, render
from dreamfusion_jax.config import Config, is_flat
from dreamfusion_jax.diffusion.hub import locate
from dreamfusion_jax.diffusion.prior import Prior, load_prior
from dreamfusion_jax.diffusion.weights import Place
from dreamfusion_jax.errors import RunError, UserError
from dreamfusion_jax.files import AnyPath, as_path
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.page import build
from dreamfusion_jax.platform import platform
from dreamfusion_jax.progress import Progress
from dreamfusion_jax.prompts import TextTable, text_table
from dreamfusion_jax.settings import PriorConfig
from dreamfusion_jax.training import processes
from dreamfusion_jax.training.checkpoint import Checkpoints
from dreamfusion_jax.training.diagnostics import write_diagnostics
from dreamfusion_jax.training.metrics import MetricsWriter
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import TrainState, build_scene, init_state
from dreamfusion_jax.training.step import TrainStep, make_train_step, place_input, replicate
from dreamfusion_jax.training.views import text_options
from dreamfusion_jax.training.wandb import WandbRun, require_wandb

TOYBOX = Path(__file__).parent.parent / "toybox" / "weights"

# The first preview comes after so many steps, or sooner where so many seconds have gone by.
FIRST_PREVIEW_STEP = 20
FIRST_PREVIEW_SECONDS = 30.0


class Interrupted(Exception):
    """The user, or the machine, asked to stop. The message says after which step it is saved."""


class Run(NamedTuple):
    """What stays the same from the first step to the last.

    Attributes:
      workdir: folder of the results.
      scene, prior, optimizer: the pure functions.
      weights: the prior's, on every device.
      table: the embedded prompts.
      devices: where the steps run, those of all processes.
      step: the compiled step.
    """

    workdir: AnyPath
    scene: Scene
    prior: Prior
    weights: Any
    table: TextTable
    optimizer: optax.GradientTransformation
    devices: list[jax.Device]
    step: TrainStep


def prepare(config: Config) -> Run:
    """Everything that can go wrong before the first step goes wrong here."""
    if config.run.wandb:
        require_wandb()
    devices = choose_devices(config.run.devices)
    prior, weights = open_prior(config.prior, lambda array: replicate(array, devices))
    scene = build_scene(config.scene)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return Run(
        as_path(config.run.workdir),
        scene,
        prior,
        weights,
        _text_table(config, prior),
        optimizer,
        devices,
        make_train_step(config, scene, prior, optimizer, devices),
    )


def with_prompt(run: Run, config: Config) -> Run:
    """`run` for a configuration that differs from its own in prompt and workdir alone.

    Neither the prior is read nor the step compiled again.
    """
    table = _text_table(config, run.prior)
    return run._replace(workdir=as_path(config.run.workdir), table=table)


def _text_table(config: Config, prior: Prior) -> TextTable:
    options = text_options(config.train)
    return text_table(prior, config.train.prompt, config.prior.negative_prompt, options)


def choose_devices(count: int) -> list[jax.Device]:
    """The first `count` devices of every process; all of them where it is 0."""
    own = len(jax.local_devices())
    if count > own:
        raise UserError(f"--devices={count}, but this machine has {own}.")
    taken: dict[int, int] = {}
    chosen = []
    for device in jax.devices():
        taken[device.process_index] = taken.get(device.process_index, 0) + 1
        if taken[device.process_index] <= (count or own):
            chosen.append(device)
    return chosen


def open_prior(config: PriorConfig, place: Place = jax.device_put) -> tuple[Prior, Any]:
    """Reads the prior in the number formats that suit the machine.

    Args:
      place: puts each array of its weights where the steps will want it.
    """
    embedded = config.prior == "toybox"
    path = TOYBOX if embedded else locate(config.prior, config.revision, config.variant)
    dtype, vae_dtype = prior_dtypes(config)
    with memory.explained("the prior was loaded", lambda: memory.prior_remedies(dtype)):
        return load_prior(path, dtype, vae_dtype, config.variant, place)


def prior_dtypes(config: PriorConfig) -> tuple[Any, Any]:
    """The number formats of the prior's U-Net and of its autoencoder.

    Guidance multiplies what is small, the difference that the text makes. "auto" keeps its error
    below 6 % where it is 3 % of the noise, which bfloat16 does not (measured by
    tests/benchmarks/prior_precision.py): a GPU multiplies in float16, a TPU, which cannot, in
    float32 (see `float32_products`).

    Raises:
      UserError: the platform does not multiply in the format asked for.
    """
    here = platform()
    if config.prior_dtype == "float16" and here == "tpu":
        raise UserError(
            "--prior_dtype=float16: a TPU does not multiply in it. auto is float32 there; bfloat16"
            " takes half the memory and costs accuracy."
        )
    dtypes = {"float32": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16}
    auto = {"cpu": jnp.float32, "tpu": jnp.float32}.get(here, jnp.float16)
    vae_auto = jnp.float32 if here == "cpu" else jnp.bfloat16
    return dtypes.get(config.prior_dtype, auto), dtypes.get(config.vae_dtype, vae_auto)


def train(config: Config, run: Run, started: float) -> TrainState:
    """Optimises from the newest checkpoint, or the start, to the last step.

    Args:
      started: `time.monotonic()` when the program started, for the first preview.

    Raises:
      Interrupted: on Ctrl-C or SIGTERM, when the state is saved.
      RunError: memory runs out, or the numbers go wrong.
    """
    with memory.explained("the scene was optimised", lambda: _remedies(config, run)):
        return _train(config, run, started)


def _remedies(config: Config, run: Run) -> list[str]:
    unet_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(run.weights.get("unet")))
    return memory.training_remedies(config, unet_bytes, *prior_dtypes(config.prior))


def _train(config: Config, run: Run, started: float) -> TrainState:
    checkpoints = Checkpoints(run.workdir, run.devices)
    try:
        state = init_state(run.scene, run.optimizer, config.train.seed)
        if checkpoints.latest_step():
            # What a run that was given up skipped in a row counts anew.
            state = checkpoints.restore(state)._replace(skipped_in_row=jnp.int32(0))
            if processes.is_first():
                print(f"Going on in {run.workdir} after step {state.step}.", flush=True)
        # Innermost: whoever waits for a dead process may wait for ever, here or in `close`.
        with _heard_interruptions() as interrupted, processes.watched():
            return _train_steps(config, run, checkpoints, state, started, interrupted)
    finally:
        checkpoints.close()


def _train_steps(
    config: Config,
    run: Run,
    checkpoints: Checkpoints,
    state: TrainState,
    started: float,
    interrupted: Callable[[], bool],
) -> TrainState:
    """The loop, the same in every process. Returns the last state, on the host."""
    first, steps, shows = int(state.step), config.train.steps, processes.is_first()
    inputs = {stop: place_input(run.devices, stop) for stop in (False, True)}
    state, weights, table = replicate((state, run.weights, run.table), run.devices)
    writer = _metrics_writer(config, run, first) if shows else None
    previewed = first > 0
    progress = Progress(steps, "compiling the step", "step", first=first, shown=shows)
    metrics: dict[str, jax.Array] = {}
    try:
        for step in range(first + 1, steps + 1):
            before = metrics
            state, metrics = run.step(inputs[interrupted()], state, weights, table)
            # The next step is handed over while this one runs; further ahead, progress would lie.
            signals = _read_signals(metrics if step == steps else before)
            if step == first + 1:
                progress.begin("optimising")
            if writer and (step % config.run.log_every == 0 or step == steps):
                _log(writer, step, metrics, progress)
            progress.update()
            if writer and _preview_due(config, step, previewed, started):
                picture = _write_preview(config, run, state, step)
                writer.write_preview(step, picture)
                if not previewed:
                    newest = run.workdir / "preview.png"
                    progress.write(f"First preview: {newest} (renewed while it goes on)")
                    progress.begin("optimising", announce=False)  # It was compiled, too.
                build.write_page(run.workdir, config, build.RUNNING, step, writer.path)
                previewed = True
            # Alone, there is nobody to agree with.
            stop = interrupted() if processes.is_alone() else signals.stop
            lost = signals.skipped_in_row >= config.run.max_skipped_steps
            if stop or lost or step % config.run.checkpoint_every == 0 or step == steps:
                checkpoints.save(state)
                if writer:
                    writer.publish()
            if writer and (lost or (stop and step < steps)):
                build.write_page(run.workdir, config, build.STOPPED, step, writer.path)
            if lost:
                raise _given_up(config, run, state)
            if stop and step < steps:
                raise Interrupted(f"{run.workdir} after step {step}")
    finally:
        progress.close()
        if writer:
            writer.close()
    return jax.device_get(state)


def _metrics_writer(config: Config, run: Run, first: int) -> MetricsWriter:
    wandb = WandbRun(config) if config.run.wandb else None
    return MetricsWriter(run.workdir, first, len(run.devices), wandb)


class _Signals(NamedTuple):
    """What a step tells every process alike: to stop, and how many steps in a row were skipped."""

    stop: bool = False
    skipped_in_row: int = 0


def _read_signals(metrics: dict[str, jax.Array]) -> _Signals:
    """Waits for the step with these metrics, if there was one."""
    if not metrics:
        return _Signals()
    stop, in_row = jax.device_get((metrics["stop"], metrics["skipped_in_row"]))
    return _Signals(bool(stop), int(in_row))


def _log(
    writer: MetricsWriter, step: int, metrics: dict[str, jax.Array], progress: Progress
) -> None:
    values = writer.write(step, {name: x for name, x in metrics.items() if name != "stop"})
    shown = {
        "opacity": f"{values['opacity_mean']:.2f}",
        "residual": f"{values['residual_rms']:.3g}",
    }
    if values["skipped_steps"]:
        shown["skipped"] = f"{values['skipped_steps']:.0f}"
    progress.tell(**shown)


def _given_up(config: Config, run: Run, state: TrainState) -> RunError:
    if processes.is_first():
        return write_diagnostics(run.workdir, config, state, run.weights, len(run.devices))
    return RunError("The numbers are not finite; the first process tells more.")


def _preview_due(config: Config, step: int, previewed: bool, started: float) -> bool:
    if not previewed:
        late = time.monotonic() - started > FIRST_PREVIEW_SECONDS
        return late or step >= min(FIRST_PREVIEW_STEP, config.train.steps)
    return step % config.run.preview_every == 0


def _write_preview(config: Config, run: Run, state: TrainState, step: int) -> np.ndarray:
    """Four sides of the scene, to preview.png (always the newest) and previews/."""
    params, orbit = jax.device_get(state.params), render.training_orbit(config.camera)
    sides = render.PREVIEW_AZIMUTHS_DEG[: 1 if is_flat(config) else None]
    picture = render.preview(run.scene, params, config.run.preview_size, step, orbit, sides)
    folder = run.workdir / "previews"
    folder.mkdir(exist_ok=True)
    render.write_png(folder / f"step_{step:06d}.png", picture)
    render.write_png(run.workdir / "preview.png", picture)
    return picture


@contextmanager
def _heard_interruptions() -> Iterator[Callable[[], bool]]:
    """Notes Ctrl-C and SIGTERM instead of dying of them; the second one is obeyed at once.

    Where Python forbids it, in any thread but the main one, neither is heard here.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def hear(number: int, frame: Any) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        os.write(2, b"\nStopping after this step; once more to stop at once without saving.\n")

    old = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
