"""The report and the error of a run whose numbers are not finite."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamfusion_jax.distillation.view_prompts import TextTable
from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write
from dreamfusion_jax.training.state import TrainState
from dreamfusion_jax.training.step import Setup, draw_views

MAX_REPORTED_STEPS = 20  # whose views are reported


def write_diagnostics(
    workdir: AnyPath,
    setup: Setup,
    state: TrainState,
    prior_params: Any,
    table: TextTable,
    devices: int,
) -> RunError:
    """Writes diagnostics_step_N.json; returns the error that ends the run.

    The file holds the views and times t of the last skipped steps (drawn again, as they depend only
    on seed and step), and of every array of the state, the prior and the embedded prompts its norm
    and the count of its non-finite numbers.
    """
    step, consecutive = int(state.step), int(state.consecutive_skipped)
    skipped = range(max(step - consecutive, step - MAX_REPORTED_STEPS, 0), step)
    sizes = {"scene": _sizes(state.params), "optimizer": _sizes(state.opt_state)}
    sizes["prior"], sizes["text"] = _sizes(prior_params), _sizes(table)
    report = {
        "step": step,
        "skipped_steps": int(state.skipped),
        "consecutive_skipped": consecutive,
        "views": [view for at in skipped for view in _views(setup, at, devices)],
        **sizes,
    }
    path = workdir / f"diagnostics_step_{step:06d}.json"
    atomic_write(path, (json.dumps(report, indent=1) + "\n").encode())
    return RunError(
        f"The numbers of {consecutive} steps in a row, up to step {step}, were not finite;"
        f" {_advice(sizes, _in_float16(prior_params))} The last good state is"
        f" saved; {path} has the details."
    )


def _in_float16(params: Any) -> bool:
    return any(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(params))


def _advice(sizes: dict[str, dict[str, Any]], in_float16: bool) -> str:
    wrong = {
        part: [n for n, size in by_name.items() if size["not_finite"]]
        for part, by_name in sizes.items()
    }
    if wrong["prior"]:
        return f"the prior's weights are not ({wrong['prior'][0]}): check its files."
    if wrong["text"]:
        return f"the embedded prompts are not ({wrong['text'][0]}): check the text encoder's files."
    if wrong["scene"] or wrong["optimizer"]:
        name = (wrong["scene"] + wrong["optimizer"])[0]
        return f"the scene's parameters are not ({name}): start again in another --workdir."
    cause = "the prior computes in float16, and may have exceeded its largest number, 65504: "
    return (
        f"{cause * in_float16}start again in another --workdir with --prior_dtype=float32 and"
        " --vae_dtype=float32, a lower --learning_rate or a lower --guidance_scale."
    )


def _views(setup: Setup, step: int, devices: int) -> list[dict[str, Any]]:
    indices = jnp.arange(devices * setup.config.train.views_per_device)
    draws = draw_views(setup, jnp.int32(step), indices)
    poses, times = np.asarray(draws.view.camera.pose), np.asarray(draws.t)
    return [
        {"step": step, "view": int(i), "t": float(times[i]), "camera_to_world": poses[i].tolist()}
        for i in indices
    ]


def _sizes(tree: Any) -> dict[str, dict[str, float | int | None]]:
    """Computes of every array its norm (None if not finite) and the count of non-finite numbers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _size(leaf) for path, leaf in leaves}


def _size(leaf: Any) -> dict[str, float | int | None]:
    leaf = jnp.asarray(leaf).astype(jnp.float32)
    norm, count = float(optax.global_norm(leaf)), int(jnp.sum(~jnp.isfinite(leaf)))
    return {"norm": norm if np.isfinite(norm) else None, "not_finite": count}
