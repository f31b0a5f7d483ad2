"""The training loop: prepares a run, optimizes, logs, previews and saves checkpoints.

The host only counts steps. Per step it starts the device's program and waits for the previous one,
so that the progress bar is right and an interruption is handled at once.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamfusion_jax.config.flags import Config, is_flat, name_flags
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.distillation import view_prompts
from dreamfusion_jax.distillation.objectives import make_objective
from dreamfusion_jax.distillation.view_prompts import TextTable, ViewScheme
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import distributed, memory_advice
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.diagnostics import write_diagnostics
from dreamfusion_jax.runs.guidance_strip import write_guidance
from dreamfusion_jax.runs.metrics import MetricsWriter
from dreamfusion_jax.runs.open_prior import prior_dtypes, read_prior
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.start import initial_state
from dreamfusion_jax.runs.text_embeddings import with_kept_text
from dreamfusion_jax.runs.wandb_logger import WandbRun, require_wandb
from dreamfusion_jax.runs.workdir import span
from dreamfusion_jax.runtime import oom, process
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path
from dreamfusion_jax.runtime.finite import require_finite
from dreamfusion_jax.runtime.png import write_png
from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.training.guidance_view import make_guidance_view
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import render_stages
from dreamfusion_jax.training.state import TrainState, build_scene, init_state
from dreamfusion_jax.training.step import (
    Setup,
    TrainStep,
    make_train_step,
    place_input,
    place_weights,
    replicate,
    stage_setups,
)

# The first preview comes after this many steps, or sooner, after this many seconds.
FIRST_PREVIEW_STEP = 20
FIRST_PREVIEW_SECONDS = 30.0
_TEXT_REMEDY = "check the weights in the folder text_encoder of --prior"


class Interrupted(Exception):
    """Raised on Ctrl-C, SIGTERM or SIGHUP, with the state saved; the message names the folder."""


class Run(NamedTuple):
    """Everything that stays the same from the first step to the last.

    Attributes:
      workdir: folder of the results.
      setup: what the step was compiled for; its prompt and folder may be another run's.
      prior_params: the prior's parameters, on every device.
      table: the embedded prompts.
      optimizer: updates the parameters of the scene and the objective.
      devices: the devices of all processes on which the steps run.
      step: the compiled step, at the first render size.
      prior_digest: of the prior's files; "": not known.
      later_steps: the compiled step at each further render size.
    """

    workdir: AnyPath
    setup: Setup
    prior_params: PriorParams
    table: TextTable
    optimizer: optax.GradientTransformation
    devices: list[jax.Device]
    step: TrainStep
    prior_digest: str = ""
    later_steps: tuple[TrainStep, ...] = ()

    @property
    def scene(self) -> Scene:
        """The scene to optimize."""
        return self.setup.scene

    @property
    def prior(self) -> Prior:
        """The diffusion model that guides the optimization."""
        return self.setup.prior


def prepare(config: Config, schemes: Mapping[str, ViewScheme], other: Run | None = None) -> Run:
    """Prepares a run, and raises whatever error can be raised before the first step.

    Args:
      schemes: further choices of --view_words beside "paper" and "none", by name.
      other: a run whose prior is used where the settings name the same.
    """
    if config.run.wandb:
        require_wandb()
    devices = choose_devices(config.run.devices)
    if other and (other.setup.config.prior, other.devices) == (config.prior, devices):
        prior, prior_params, digest = other.prior, other.prior_params, other.prior_digest
    else:
        place = functools.partial(place_weights, devices=devices)
        prior, prior_params, digest = read_prior(config.prior, place)
    setup = make_setup(config, prior, schemes)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    step, *later_steps = (make_train_step(s, optimizer, devices) for s in stage_setups(setup))
    return Run(
        as_path(config.run.workdir),
        setup,
        prior_params,
        embed_prompts(setup, config),
        optimizer,
        devices,
        step,
        digest,
        tuple(later_steps),
    )


def make_setup(config: Config, prior: Prior, schemes: Mapping[str, ViewScheme]) -> Setup:
    """Builds what a step is compiled for. Raises a UserError where prior and settings conflict."""
    views, joint = config.train.views_per_device, prior.joint_views
    if views % joint:
        raise UserError(
            f"--views_per_device={views} must be a multiple of {joint}: this prior denoises"
            f" {joint} views of an object together."
        )
    with name_flags():
        objective = make_objective(prior, config.distillation)
    scheme = view_prompts.known_schemes(schemes)[config.view_prompts.view_words]
    return Setup(config, build_scene(config.scene), prior, objective, scheme)


def with_prompt(run: Run, config: Config) -> Run:
    """Returns `run` for a configuration that differs only in prompt and workdir.

    The prior is not loaded and the step not compiled again.
    """
    table = embed_prompts(run.setup, config)
    return run._replace(workdir=as_path(config.run.workdir), table=table)


def embed_prompts(setup: Setup, config: Config) -> TextTable:
    """Embeds the prompts of a run's views. Raises a RunError where the text encoder gives NaN."""
    settings = config.train.prompt, config.view_prompts, setup.scheme
    prior, workdir = setup.prior, config.run.workdir
    if workdir:  # None yet where the Python API prepares for later prompts.
        prompts = view_prompts.all_prompts(*settings)
        prior = with_kept_text(prior, as_path(workdir), prompts)
    table = view_prompts.text_table(prior, *settings)
    for leaf in jax.tree.leaves(table):
        require_finite(leaf, "What the text encoder makes of --prompt", _TEXT_REMEDY)
    return table


def choose_devices(count: int) -> list[jax.Device]:
    """Returns the first `count` devices of every process; all where it is 0."""
    local = len(jax.local_devices())
    if count > local:
        raise UserError(f"--devices={count}, but this machine has {local}.")
    counts: dict[int, int] = {}
    chosen = []
    for device in jax.devices():
        counts[device.process_index] = counts.get(device.process_index, 0) + 1
        if counts[device.process_index] <= (count or local):
            chosen.append(device)
    return chosen


def train(config: Config, run: Run, started: float) -> TrainState:
    """Optimizes from the newest checkpoint, or the start, to the last step.

    Args:
      started: `time.monotonic()` when the program started, for the first preview.

    Raises:
      Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the state is saved.
      KeyboardInterrupt: the same before the first step, or the second time.
      RunError: memory runs out, or the numbers are not finite.
    """
    with oom.oom_context("the scene was optimized", lambda: _remedies(config, run)):
        return _train(config, run, started)


def _remedies(config: Config, run: Run) -> list[str]:
    unet_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(run.prior_params.get("unet")))
    return memory_advice.training_remedies(config, unet_bytes, *prior_dtypes(config.prior))


def _train(config: Config, run: Run, started: float) -> TrainState:
    checkpoints = Checkpoints(run.workdir, run.devices)
    try:
        inputs = (run.scene, run.optimizer, run.setup.objective, run.prior_params)
        if not checkpoints.latest_step():
            state = initial_state(config, *inputs)
        else:
            state = init_state(*inputs[:2], config.train.seed, *inputs[2:])
            # A run that gave up after skipped steps gets as many again.
            state = checkpoints.restore(state)._replace(consecutive_skipped=jnp.int32(0))
            if distributed.is_primary():
                done = span(run.workdir, config)[0] + state.step
                print(f"Continuing in {run.workdir} after step {done}.", flush=True)
        # Innermost, because `close` would wait forever for a dead process.
        with _graceful_shutdown() as shutdown, distributed.abort_on_peer_failure():
            return _train_steps(config, run, checkpoints, state, started, shutdown)
    finally:
        checkpoints.close()


def _train_steps(
    config: Config,
    run: Run,
    checkpoints: Checkpoints,
    state: TrainState,
    started: float,
    shutdown: _Shutdown,
) -> TrainState:
    """Runs the loop, the same in every process. Returns the last state, on the host."""
    first, steps, shows = int(state.step), config.train.steps, distributed.is_primary()
    earlier, total = span(run.workdir, config)
    placed = {stop: place_input(run.devices, stop) for stop in (False, True)}
    state, prior_params, table = replicate((state, run.prior_params, run.table), run.devices)
    writer = _metrics_writer(config, run, first) if shows else None
    previewed = first > 0
    if writer and previewed:  # The page says that it stopped, or finished with fewer steps.
        build.write_page(run.workdir, config, build.RUNNING, first, writer.path)
    views = [make_guidance_view(setup) for setup in stage_setups(run.setup)]
    progress = Progress(total, "compiling the step", "step", first=earlier + first, shown=shows)
    metrics: dict[str, jax.Array] = {}
    try:
        for step in range(first + 1, steps + 1):
            before, stage = metrics, stage_of(config, step - 1)
            if step > first + 1 and stage > stage_of(config, step - 2):
                progress.write(f"Step {step}: the renders grow, and the step compiles again")
            compiled = (run.step, *run.later_steps)[stage]
            state, metrics = compiled(placed[shutdown.requested], state, prior_params, table)
            # The device gets one step ahead only; with more, the progress shown would be wrong.
            signals = _read_signals(metrics if step == steps else before)
            if step == first + 1:
                shutdown.can_wait = True
                progress.begin("optimizing")
            if writer and (step % config.run.log_every == 0 or step == steps):
                _log(writer, step, metrics, progress)
            progress.update()
            if writer and _preview_due(config, step, previewed, started):
                image = _write_preview(config, run, state, step)
                writer.write_preview(step, image)
                if config.run.save_guidance:
                    inputs = prior_params, table, state.scene_params
                    write_guidance(run.workdir, views[stage_of(config, step)], step, *inputs)
                if not previewed:
                    newest = run.workdir / "preview.png"
                    progress.write(f"First preview: {newest} (updated during the run)")
                    progress.begin("optimizing", announce=False)  # The renderer was compiled, too.
                build.write_page(run.workdir, config, build.RUNNING, step, writer.path)
                previewed = True
            # With several processes all must stop after the same step.
            stop = shutdown.requested if distributed.is_single_process() else signals.stop
            lost = signals.consecutive_skipped >= config.run.max_skipped_steps
            if stop or lost or step % config.run.checkpoint_every == 0 or step == steps:
                checkpoints.save(state)
                if writer:
                    writer.publish()
            if lost:
                raise _non_finite_error(run, state)
            if stop and step < steps:
                raise Interrupted(f"{run.workdir} after step {earlier + step}")
    finally:
        progress.close()
        if writer:
            writer.close()
    return jax.device_get(state)


def stage_of(config: Config, step: int) -> int:
    """Returns which of the render sizes a step, counted from 0, has."""
    return bisect.bisect_right(render_stages(config.train), step) - 1


def _metrics_writer(config: Config, run: Run, first: int) -> MetricsWriter:
    wandb = WandbRun(config) if config.run.wandb else None
    return MetricsWriter(run.workdir, first, len(run.devices), wandb)


class _Signals(NamedTuple):
    """A step's results that are the same in every process: to stop, and steps skipped in a row."""

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


def _non_finite_error(run: Run, state: TrainState) -> RunError:
    if distributed.is_primary():
        inputs = run.prior_params, run.table
        return write_diagnostics(run.workdir, run.setup, state, *inputs, len(run.devices))
    return RunError("The numbers are not finite; the message of the first process has the details.")


def _preview_due(config: Config, step: int, previewed: bool, started: float) -> bool:
    if not previewed:
        late = time.monotonic() - started > FIRST_PREVIEW_SECONDS
        return late or step >= min(FIRST_PREVIEW_STEP, config.train.steps)
    return step % config.run.preview_every == 0


def _write_preview(config: Config, run: Run, state: TrainState, step: int) -> np.ndarray:
    """Renders four sides of the scene to preview.png (always the newest) and previews/."""
    params, orbit = jax.device_get(state.params["scene"]), images.training_orbit(config.camera)
    sides = images.PREVIEW_AZIMUTHS_DEG[: 1 if is_flat(config) else None]
    image = images.preview(run.scene, params, config.run.preview_size, step, orbit, sides)
    folder = run.workdir / "previews"
    folder.mkdir(exist_ok=True)
    write_png(folder / f"step_{step:06d}.png", image)
    write_png(run.workdir / "preview.png", image)
    return image


@dataclasses.dataclass
class _Shutdown:
    """A wish to stop.

    Attributes:
      requested: whether a signal asked for it.
      can_wait: whether there is anything to save; before, while the step compiles, a signal raises
        at once. Processes of one job wait always, as they must stop after the same step.
    """

    requested: bool = False
    can_wait: bool = False


@contextmanager
def _graceful_shutdown() -> Iterator[_Shutdown]:
    """Records Ctrl-C, SIGTERM and SIGHUP, so that the loop can save and stop; the second raises.

    In any thread but the main one, where Python forbids it, signals are not handled.
    """
    shutdown = _Shutdown(can_wait=not distributed.is_single_process())
    if threading.current_thread() is not threading.main_thread():
        yield shutdown
        return

    def handle(number: int, frame: Any) -> None:
        if shutdown.requested or not shutdown.can_wait:
            raise KeyboardInterrupt
        shutdown.requested = True
        process.write_error(
            b"\nStopping after this step; once more to stop at once without saving.\n"
        )

    old = {number: signal.signal(number, handle) for number in process.stop_signals()}
    try:
        yield shutdown
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
