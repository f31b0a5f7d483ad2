"""What a run leaves behind when its numbers have gone wrong, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write
from dreamfusion_jax.training.state import TrainState
from dreamfusion_jax.training.views import draw_view

MOST_STEPS = 20  # whose views are told


def write_diagnostics(
    workdir: AnyPath, config: Config, state: TrainState, weights: Any, devices: int
) -> RunError:
    """Writes diagnostics_step_N.json; returns the error that ends the run.

    The file holds the views and times t of the last steps skipped (drawn again, as they depend on
    the seed and the step alone), the norm of every array of the state and the prior's, and how
    many of their numbers are not finite.
    """
    step, consecutive = int(state.step), int(state.consecutive_skipped)
    skipped = range(max(step - consecutive, step - MOST_STEPS, 0), step)
    found = {"scene": _sizes(state.params), "optimizer": _sizes(state.opt_state)}
    found["prior"] = _sizes(weights)
    report = {
        "step": step,
        "skipped_steps": int(state.skipped),
        "consecutive_skipped": consecutive,
        "views": [view for at in skipped for view in _views(config, at, devices)],
        **found,
    }
    path = workdir / f"diagnostics_step_{step:06d}.json"
    atomic_write(path, (json.dumps(report, indent=1) + "\n").encode())
    return RunError(
        f"The numbers of {consecutive} steps in a row, up to step {step}, were not finite;"
        f" {_advice(found, _in_float16(weights))} The last good state is saved; {path} tells more."
    )


def _in_float16(weights: Any) -> bool:
    return any(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(weights))


def _advice(found: dict[str, dict[str, Any]], in_float16: bool) -> str:
    spoilt = {
        part: [n for n, size in sizes.items() if size["not_finite"]]
        for part, sizes in found.items()
    }
    if spoilt["prior"]:
        return f"the prior's weights are not ({spoilt['prior'][0]}): get its files anew."
    if spoilt["scene"] or spoilt["optimizer"]:
        name = (spoilt["scene"] + spoilt["optimizer"])[0]
        return f"the scene's parameters are not ({name}): start again in another --workdir."
    cause = "the prior computes in float16, which ends at 65504, and may have passed that: "
    return (
        f"{cause * in_float16}start again in another --workdir with --prior_dtype=float32 and"
        " --vae_dtype=float32, a lower --learning_rate or a lower --guidance_scale."
    )


def _views(config: Config, step: int, devices: int) -> list[dict[str, Any]]:
    indices = jnp.arange(devices * config.train.views_per_device)
    draws = jax.vmap(lambda index: draw_view(config, jnp.int32(step), index))(indices)
    poses, times = np.asarray(draws.view.camera.pose), np.asarray(draws.t)
    return [
        {"step": step, "view": int(i), "t": float(times[i]), "camera_to_world": poses[i].tolist()}
        for i in indices
    ]


def _sizes(tree: Any) -> dict[str, dict[str, float | int | None]]:
    """Of every array: its norm (None where that is not finite) and its numbers not finite."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _size(leaf) for path, leaf in leaves}


def _size(leaf: Any) -> dict[str, float | int | None]:
    leaf = jnp.asarray(leaf).astype(jnp.float32)
    norm, wrong = float(optax.global_norm(leaf)), int(jnp.sum(~jnp.isfinite(leaf)))
    return {"norm": norm if np.isfinite(norm) else None, "not_finite": wrong}
