"""Fits a task with Muon: a jitted step, an average of the weights, checkpoints, progress."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from dreamfusion_jax.runtime.progress import Progress
from dreamfusion_jax.toybox.recipes import Stage
from dreamfusion_jax.toybox.tasks import Params, Task

EMA_DECAY = 0.998
_SAVE_EVERY = 400
_PREVIEW_EVERY = 400
_LOG_EVERY = 25


class FitState(NamedTuple):
    """All that is saved: the batch and the noise of a step follow from the seed and the step."""

    step: jax.Array
    params: Params
    average: Params
    opt_state: Any


def fit(task: Task, stage: Stage, workdir: pathlib.Path, seed: int) -> Params:
    """Trains to the stage's last step, from the newest checkpoint in `workdir` if there is one.

    Returns:
      The exponential moving average of the parameters.
    """
    optimizer = _optimizer(stage)

    @jax.jit
    def start(key: jax.Array) -> FitState:
        params = task.init(key)
        average = jax.tree.map(jnp.copy, params)
        return FitState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))

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
        return FitState(state.step + 1, params, average, opt_state), {"loss": loss, **metrics}

    state = start(jax.random.key(seed))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager:
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        first = int(state.step)
        with Progress(stage.steps, "training", "step", first=first) as bar:
            for step in range(first, stage.steps):
                batch = task.batch(np.random.default_rng([seed, step]), stage.batch_size)
                state, metrics = advance(state, batch)
                done = step + 1
                if done % _LOG_EVERY == 0:
                    bar.tell(**{name: f"{float(value):.4f}" for name, value in metrics.items()})
                bar.update()
                if done % _PREVIEW_EVERY == 0 or done == stage.steps:
                    iio.imwrite(workdir / f"preview_{done:06d}.png", task.preview(state.average))
                if done % _SAVE_EVERY == 0 or done == stage.steps:
                    manager.save(done, args=ocp.args.StandardSave(state))
    return state.average


def _optimizer(stage: Stage) -> optax.GradientTransformation:
    warmup = min(200, stage.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, stage.learning_rate, warmup, stage.steps)
    # Muon (Jordan 2024) for matrices and convolutions, AdamW for norms, biases and embeddings.
    update = optax.contrib.muon(
        rate,
        weight_decay=1e-3,
        adam_b2=0.99,
        adam_weight_decay=1e-3,
        adam_learning_rate=rate,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,  # updates of the size of Adam's, so that one rate serves both
    )
    return optax.chain(optax.clip_by_global_norm(1.0), update)


def _matrices(params: Params) -> Params:
    """Which axes of each kernel its inputs and outputs run along; None for all other arrays."""

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        inputs = tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
