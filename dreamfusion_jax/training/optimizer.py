"""Makes an optax optimizer of the settings: clip, Adam or Adan, rates by group, a schedule.

The paper's Distributed Shampoo is left out: optax has none, and the package that once carried it
(optax-shampoo, 2022) calls what JAX has since removed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.training.adan import scale_by_adan
from dreamfusion_jax.training.options import OptimizerOptions


def make_optimizer(config: OptimizerOptions, steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of a run of `steps`, for params {"scene": ..., "objective": ...}.

    The objective's own params, where there are any, have AdamW at a constant rate instead.
    """
    scene = _scene_optimizer(config, steps)
    own = optax.adamw(config.objective_learning_rate, weight_decay=config.objective_weight_decay)
    parts = {"scene": scene, "objective": own}
    both = optax.partition(parts, {name: name for name in parts})

    def chosen(tree: Any) -> optax.GradientTransformation:
        return both if jax.tree.leaves(tree.get("objective")) else scene

    return optax.GradientTransformation(
        lambda params: chosen(params).init(params),
        lambda updates, state, params=None: chosen(updates).update(updates, state, params),
    )


def _scene_optimizer(config: OptimizerOptions, steps: int) -> optax.GradientTransformation:
    parts = [
        _direction(config),
        optax.stateless(lambda updates, params: _scale_groups(config, updates)),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    ]
    if config.freeze != "none":
        parts.insert(0, _frozen(config))
    if config.gradient_clip:
        parts.insert(0, optax.clip_by_global_norm(config.gradient_clip))
    return optax.chain(*parts)


def learning_rate(config: OptimizerOptions, steps: int) -> optax.Schedule:
    """Returns a linear rise over `warmup_steps`, then a decay that ends at step `steps`.

    Rates that are still unset are those of the default field.
    """
    config = config.suited_to(SceneOptions())
    highest, lowest = config.learning_rate, config.learning_rate_final
    falling = max(steps - config.warmup_steps, 1)
    if config.learning_rate_decay == "cosine":
        fall = optax.cosine_decay_schedule(highest, falling, lowest / highest)
    else:
        fall = optax.exponential_decay(highest, falling, lowest / highest)
    if not config.warmup_steps:
        return fall
    rise = optax.linear_schedule(config.warmup_learning_rate, highest, config.warmup_steps)
    return optax.join_schedules([rise, fall], [config.warmup_steps])


def _frozen(config: OptimizerOptions) -> optax.GradientTransformation:
    """Makes the gradients of what --freeze names 0, for the first steps or for all."""
    steps, group = config.freeze_steps, ("scene", "field", config.freeze)

    def share(count: jax.Array) -> jax.Array:
        return jnp.float32(count >= steps) if steps else jnp.float32(0.0)

    def is_frozen(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[:3] == group, params)

    return optax.masked(optax.scale_by_schedule(share), is_frozen)


def _names(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(getattr(part, "key", None) for part in path)


def _direction(config: OptimizerOptions) -> optax.GradientTransformation:
    match config.optimizer:
        case "adam":
            return optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps)
        case "adan":  # with its own three decays
            return scale_by_adan(eps=config.adam_eps)
    raise UserError(f"--optimizer={config.optimizer}: use adam or adan.")


def _scale_groups(config: OptimizerOptions, updates: Any) -> Any:
    """Scales the updates of {"scene": ...} by the names on their paths."""
    rates: dict[tuple[Any, ...], float] = {
        ("scene", "proposal"): config.proposal_rate,
        ("scene", "background"): config.background_rate,
        ("scene", "field", "network"): config.network_rate,
    }

    def scale(path: tuple[Any, ...], leaf: Any) -> Any:
        # A texture of its own has the rates of the field that it is a copy of.
        names = tuple(name for name in _names(path) if name not in ("geometry", "texture"))
        matches = (rates[names[:n]] for n in (3, 2) if names[:n] in rates)
        return next(matches, 1.0) * leaf

    return jax.tree_util.tree_map_with_path(scale, updates)
