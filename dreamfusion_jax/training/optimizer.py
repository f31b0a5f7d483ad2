"""From the settings to an optax optimiser: clip, Adam or Adan, rates by group, a schedule.

The paper's Distributed Shampoo is left out: optax has none, and the package that once carried it
(optax-shampoo, 2022) calls what JAX has since removed.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from dreamfusion_jax.errors import UserError
from dreamfusion_jax.settings import OptimizerConfig, SceneConfig
from dreamfusion_jax.training.adan import scale_by_adan


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps`."""
    parts = [
        _direction(config),
        optax.stateless(lambda updates, params: _scale_groups(config, updates)),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    ]
    if config.gradient_clip:
        parts.insert(0, optax.clip_by_global_norm(config.gradient_clip))
    return optax.chain(*parts)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A linear rise over `warmup_steps`, then a fall that ends at step `steps`.

    What is left open and not yet settled by the run's field is that of the default one.
    """
    config = config.suited_to(SceneConfig())
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


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    match config.optimizer:
        case "adam":
            return optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps)
        case "adan":  # with its own three decays
            return scale_by_adan(eps=config.adam_eps)
    raise UserError(f"--optimizer={config.optimizer}: use adam or adan.")


def _scale_groups(config: OptimizerConfig, updates: Any) -> Any:
    """The scene's parameters are nested dicts; the first two names on a path decide."""
    rates = {
        ("proposal",): config.proposal_rate,
        ("background",): config.background_rate,
        ("field", "network"): config.network_rate,
    }

    def scale(path: tuple[Any, ...], leaf: Any) -> Any:
        names = tuple(part.key for part in path[:2])
        return rates.get(names, rates.get(names[:1], 1.0)) * leaf

    return jax.tree_util.tree_map_with_path(scale, updates)
