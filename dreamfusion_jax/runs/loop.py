"""The run: set up, optimize step by step, keep what must not be lost, show what comes out.

The host only counts steps. Per step it starts the device's program and waits for the one before, so
that the bar tells the truth and an interruption is heard at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamfusion_jax.config.flags import Config, is_flat
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.distillation import view_prompts
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.view_prompts import TextTable, ViewScheme
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import distributed, memory_advice
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.diagnostics import write_diagnostics
from dreamfusion_jax.runs.metrics import MetricsWriter
from dreamfusion_jax.runs.open_prior import open_prior, prior_dtypes
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.wandb_logger import WandbRun, require_wandb
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import TrainState, build_scene, init_state
from dreamfusion_jax.training.step import Setup, TrainStep, make_train_step, place_input, replicate

# The first preview comes after so many steps, or sooner where so many seconds have gone by.
FIRST_PREVIEW_STEP = 20
FIRST_PREVIEW_SECONDS = 30.0


class Interrupted(Exception):
    """The user, or the machine, asked to stop. The message says after which step it is saved."""


class Run(NamedTuple):
    """What stays the same from the first step to the last.

    Attributes:
      workdir: folder of the results.
      setup: what the step was compiled for; its prompt and folder may be another run's.
      prior_params: the prior's, on every device.
      table: the embedded prompts.
      optimizer: that of the scene and the objective.
      devices: where the steps run, those of all processes.
      step: the compiled step.
    """

    workdir: AnyPath
    setup: Setup
    prior_params: PriorParams
    table: TextTable
    optimizer: optax.GradientTransformation
    devices: list[jax.Device]
    step: TrainStep

    @property
    def scene(self) -> Scene:
        return self.setup.scene

    @property
    def prior(self) -> Prior:
        return self.setup.prior


def prepare(config: Config, schemes: Mapping[str, ViewScheme]) -> Run:
    """Prepares a run: everything that can go wrong before the first step goes wrong here.

    Args:
      schemes: how priors name views, by the name in the settings; "paper" and "none" are known.
    """
    if config.run.wandb:
        require_wandb()
    devices = choose_devices(config.run.devices)
    prior, prior_params = open_prior(config.prior, lambda array: replicate(array, devices))
    setup = make_setup(config, prior, schemes)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return Run(
        as_path(config.run.workdir),
        setup,
        prior_params,
        embed_prompts(setup, config),
        optimizer,
        devices,
        make_train_step(setup, optimizer, devices),
    )


def make_setup(config: Config, prior: Prior, schemes: Mapping[str, ViewScheme]) -> Setup:
    """Builds what a step is compiled for."""
    views, joint = config.train.views_per_device, prior.joint_views
    if views % joint:
        raise UserError(
            f"--views_per_device={views} must be a multiple of {joint}: this prior looks at {joint}"
            " views of an object together."
        )
    known = {"paper": view_prompts.PAPER, "none": view_prompts.NONE, **schemes}
    return Setup(
        config,
        build_scene(config.scene),
        prior,
        make_objective(prior, config.distillation),
        known[config.view_prompts.view_words],
    )


def with_prompt(run: Run, config: Config) -> Run:
    """Returns `run` for a configuration that differs from its own in prompt and workdir alone.

    Neither the prior is read nor the step compiled again.
    """
    table = embed_prompts(run.setup, config)
    return run._replace(workdir=as_path(config.run.workdir), table=table)


def embed_prompts(setup: Setup, config: Config) -> TextTable:
    """Embeds what the views of a run are called."""
    return view_prompts.text_table(
        setup.prior, config.train.prompt, config.view_prompts, setup.scheme
    )


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


def train(config: Config, run: Run, started: float) -> TrainState:
    """Optimizes from the newest checkpoint, or the start, to the last step.

    Args:
      started: `time.monotonic()` when the program started, for the first preview.

    Raises:
      Interrupted: on Ctrl-C or SIGTERM, when the state is saved.
      RunError: memory runs out, or the numbers go wrong.
    """
    with oom.oom_context("the scene was optimized", lambda: _remedies(config, run)):
        return _train(config, run, started)


def _remedies(config: Config, run: Run) -> list[str]:
    unet_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(run.prior_params.get("unet")))
    return memory_advice.training_remedies(config, unet_bytes, *prior_dtypes(config.prior))


def _train(config: Config, run: Run, started: float) -> TrainState:
    checkpoints = Checkpoints(run.workdir, run.devices)
    try:
        state = init_state(run.scene, run.optimizer, config.train.seed, run.setup.objective)
        if checkpoints.latest_step():
            # What a run that was given up skipped in a row counts anew.
            state = checkpoints.restore(state)._replace(consecutive_skipped=jnp.int32(0))
            if distributed.is_primary():
                print(f"Going on in {run.workdir} after step {state.step}.", flush=True)
        # Innermost: whoever waits for a dead process may wait for ever, here or in `close`.
        with _graceful_shutdown() as interrupted, distributed.abort_on_peer_failure():
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
    first, steps, shows = int(state.step), config.train.steps, distributed.is_primary()
    inputs = {stop: place_input(run.devices, stop) for stop in (False, True)}
    state, prior_params, table = replicate((state, run.prior_params, run.table), run.devices)
    writer = _metrics_writer(config, run, first) if shows else None
    previewed = first > 0
    progress = Progress(steps, "compiling the step", "step", first=first, shown=shows)
    metrics: dict[str, jax.Array] = {}
    try:
        for step in range(first + 1, steps + 1):
            before = metrics
            state, metrics = run.step(inputs[interrupted()], state, prior_params, table)
            # The next step is handed over while this one runs; further ahead, progress would lie.
            signals = _read_signals(metrics if step == steps else before)
            if step == first + 1:
                progress.begin("optimizing")
            if writer and (step % config.run.log_every == 0 or step == steps):
                _log(writer, step, metrics, progress)
            progress.update()
            if writer and _preview_due(config, step, previewed, started):
                picture = _write_preview(config, run, state, step)
                writer.write_preview(step, picture)
                if not previewed:
                    newest = run.workdir / "preview.png"
                    progress.write(f"First preview: {newest} (renewed while it goes on)")
                    progress.begin("optimizing", announce=False)  # It was compiled, too.
                build.write_page(run.workdir, config, build.RUNNING, step, writer.path)
                previewed = True
            # Alone, there is nobody to agree with.
            stop = interrupted() if distributed.is_single_process() else signals.stop
            lost = signals.consecutive_skipped >= config.run.max_skipped_steps
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
    consecutive_skipped: int = 0


def _read_signals(metrics: dict[str, jax.Array]) -> _Signals:
    """Waits for the step with these metrics, if there was one."""
    if not metrics:
        return _Signals()
    stop, consecutive = jax.device_get((metrics["stop"], metrics["consecutive_skipped"]))
    return _Signals(bool(stop), int(consecutive))


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
    if distributed.is_primary():
        return write_diagnostics(run.workdir, config, state, run.prior_params, len(run.devices))
    return RunError("The numbers are not finite; the first process tells more.")


def _preview_due(config: Config, step: int, previewed: bool, started: float) -> bool:
    if not previewed:
        late = time.monotonic() - started > FIRST_PREVIEW_SECONDS
        return late or step >= min(FIRST_PREVIEW_STEP, config.train.steps)
    return step % config.run.preview_every == 0


def _write_preview(config: Config, run: Run, state: TrainState, step: int) -> np.ndarray:
    """Four sides of the scene, to preview.png (always the newest) and previews/."""
    params, orbit = jax.device_get(state.params["scene"]), images.training_orbit(config.camera)
    sides = images.PREVIEW_AZIMUTHS_DEG[: 1 if is_flat(config) else None]
    picture = images.preview(run.scene, params, config.run.preview_size, step, orbit, sides)
    folder = run.workdir / "previews"
    folder.mkdir(exist_ok=True)
    write_png(folder / f"step_{step:06d}.png", picture)
    write_png(run.workdir / "preview.png", picture)
    return picture


@contextmanager
def _graceful_shutdown() -> Iterator[Callable[[], bool]]:
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
