"""Fits a task with Muon: a jitted step, an average of the weights, checkpoints, progress."""

from __future__ import annotations

import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.toybox.muon import muon
from dreamfusion_jax.toybox.recipes import Stage
from dreamfusion_jax.toybox.tasks import Params, Task

EMA_DECAY = 0.999
_SAVE_EVERY = 100
_SAVE_SECONDS = 240.0  # or sooner, where so many steps take longer
_LOG_EVERY = 50


class FitState(NamedTuple):
    """All that is saved: the batch and the noise of a step follow from the seed and the step."""

    step: jax.Array
    images: jax.Array  # seen until then: batches may be larger on another machine
    params: Params
    average: Params
    opt_state: Any


def fit(task: Task, stage: Stage, workdir: pathlib.Path, seed: int) -> Params:
    """Trains to the stage's last step, from the newest checkpoint in `workdir` if there is one.

    Means of the metrics since the line before go to metrics.jsonl, previews to PNG files. After a
    resumption the first line's means are of fewer steps; what is learned is the same to the bit.

    Returns:
      The exponential moving average of the parameters.
    """
    optimizer = _optimizer(stage)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: FitState, batch: Any) -> tuple[FitState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, batch, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(EMA_DECAY, (1.0 + state.step) / (10.0 + state.step))
        average = optax.incremental_update(params, state.average, 1.0 - decay)
        images = state.images + stage.batch_size
        after = FitState(state.step + 1, images, params, average, opt_state)
        return after, {"loss": loss, **metrics}

    def start(key: jax.Array) -> FitState:
        params = task.init(key)
        average = jax.tree.map(jnp.copy, params)
        zero = jnp.zeros((), jnp.int32)
        return FitState(zero, jnp.copy(zero), params, average, jax.jit(optimizer.init)(params))

    key = jax.random.key(seed)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager:
        newest = manager.latest_step()
        if newest is None:
            state = start(key)
        else:  # of the start only the shapes are needed: to compile it may take minutes
            outline = _here(jax.eval_shape(start, key))
            state = manager.restore(newest, args=ocp.args.StandardRestore(outline))
        first = int(state.step)
        log = _Log(workdir / "metrics.jsonl", first, int(state.images), stage.batch_size)
        saved = time.monotonic()
        with Progress(stage.steps, "training", "step", first=first) as bar:
            for step in range(first, stage.steps):
                batch = task.batch(np.random.default_rng([seed, step]), stage.batch_size, step)
                state, metrics = advance(state, batch)
                log.add(metrics)
                done = step + 1
                if done % _LOG_EVERY == 0:
                    bar.tell(**log.write(done))
                bar.update()
                last = done == stage.steps
                overdue = time.monotonic() - saved > _SAVE_SECONDS
                if done % _SAVE_EVERY == 0 or overdue or last:
                    manager.save(done, args=ocp.args.StandardSave(state))
                    saved = time.monotonic()
                if done % stage.preview_every == 0 or last:
                    iio.imwrite(workdir / f"preview_{done:06d}.png", task.preview(state.average))
                    if task.measure:
                        log.write_measured(done, task.measure(state.average))
    return state.average


def _here(outline: Any) -> Any:
    """Places every array on this machine's device, whatever device it was saved from."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), outline
    )


class _Log:
    """Writes the means of metrics as lines of JSON; lines beyond `first` are written anew."""

    def __init__(self, path: pathlib.Path, first: int, images: int, batch_size: int) -> None:
        self._path, self._batch_size = path, batch_size
        self._images_before = images - first * batch_size
        self._sums: dict[str, np.ndarray] = {}
        self._count, self._since = 0, time.monotonic()
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= first]
        path.write_text("".join(f"{line}\n" for line in kept))

    def add(self, metrics: dict[str, jax.Array]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + np.asarray(value, np.float64)
        self._count += 1

    def write(self, step: int) -> dict[str, str]:
        """Writes the means since the last call; returns the scalar ones for a progress bar."""
        means = {name: total / self._count for name, total in self._sums.items()}
        now = time.monotonic()
        rate = self._count * self._batch_size / (now - self._since)
        self._append(step, images_per_s=round(rate, 2), **means)
        self._sums, self._count, self._since = {}, 0, now
        return {name: f"{float(mean):.4f}" for name, mean in means.items() if mean.ndim == 0}

    def write_measured(self, step: int, measured: dict[str, float]) -> None:
        """Writes what was measured of the average of the parameters."""
        self._append(step, **measured)

    def _append(self, step: int, **values: Any) -> None:
        rounded = {name: np.round(value, 5).tolist() for name, value in values.items()}
        images = self._images_before + step * self._batch_size
        line = {"step": step, "images": images, **rounded}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _optimizer(stage: Stage) -> optax.GradientTransformation:
    warmup = min(200, stage.steps // 10)
    # A constant rate until the decay, so that a run can be made longer before it begins.
    decay = round(stage.decay_share * stage.steps)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, stage.learning_rate, warmup),
            optax.constant_schedule(stage.learning_rate),
            optax.linear_schedule(stage.learning_rate, 0.0, decay),
        ],
        [warmup, stage.steps - decay],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon(rate, weight_decay=1e-3))
