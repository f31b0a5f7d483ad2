"""Classifier-free guidance (Ho & Salimans, 2021), its rescaling (Lin et al., 2024), Perp-Neg."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.priors.prior import Condition, Prior, PriorParams
from dreamfusion_jax.diffusion.schedule import alpha_sigma, from_x0, to_x0


def classifier_free(
    with_text: jax.Array, without: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """Returns without + scale (with_text - without); as in diffusers, scale 1 is no guidance."""
    return without + scale * (with_text - without)


def rescale(guided: jax.Array, with_text: jax.Array, share: jax.Array | float) -> jax.Array:
    """Restores the standard deviation of `with_text` in `guided` (Lin et al., 2024, section 3.4).

    Guidance stretches a prediction, and with it the image's contrast. guided, with_text [B, ...];
    the share `share` in [0, 1] of the rescaled prediction is mixed with the plain one.
    """
    axes = tuple(range(1, guided.ndim))
    spread = lambda x: jnp.std(x, axis=axes, keepdims=True)  # noqa: E731
    ratio = spread(with_text) / jnp.maximum(spread(guided), 1e-12)
    return guided * (1.0 + share * (ratio - 1.0))


def rescale_x0(
    guided: jax.Array,
    with_text: jax.Array,
    z_t: jax.Array,
    t: jax.Array,
    prior: Prior,
    share: float,
) -> jax.Array:
    """Restores the standard deviation of the clean latent that `with_text` implies.

    As MVDream does (Shi et al., 2024): over all views of a group at once, which keeps their
    brightnesses apart. guided, with_text, z_t [B, h, w, c], t [B] -> a prediction of their kind.
    """
    levels, kind = alpha_sigma(prior.schedule, t), prior.schedule.prediction_type
    x0, plain = (to_x0(x, z_t, *levels, kind) for x in (guided, with_text))

    def spread(x: jax.Array) -> jax.Array:
        groups = jnp.std(x.reshape(len(x) // prior.joint_views, -1), axis=-1)
        return jnp.repeat(groups, prior.joint_views)[:, None, None, None]

    ratio = spread(plain) / jnp.maximum(spread(x0), 1e-8)
    return from_x0(x0 * (1.0 + share * (ratio - 1.0)), z_t, *levels, kind)


class PerpNeg(NamedTuple):
    """Perp-Neg's negative conditions, leaves [B, N, ...], and their weights [B, N]."""

    cond: Condition
    weights: jax.Array


def perpendicular_part(towards: jax.Array, away: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns sum_i w_i (a_i - <a_i, d> / |d|^2 d), which Perp-Neg subtracts from guidance.

    Only the part of each unwanted direction a_i that is perpendicular to the text's direction d
    counts, so that what both texts share stays (Armandpour et al., 2023).

    Args:
      towards: [B, h, w, c] d, the prediction with the text less that without.
      away: [B, N, h, w, c] a_i, the same of the unwanted texts.
      weights: [B, N] w_i.
    """
    d, a = towards.reshape(len(towards), 1, -1), away.reshape(*away.shape[:2], -1)
    along = jnp.sum(a * d, axis=-1, keepdims=True) / jnp.maximum(
        jnp.sum(d**2, axis=-1, keepdims=True), 1e-12
    )
    return jnp.sum(weights[..., None] * (a - along * d), axis=1).reshape(towards.shape)


def guided_prediction(
    prior: Prior,
    params: PriorParams,
    z_t: jax.Array,
    t: jax.Array,
    cond: Condition,
    uncond: Condition,
    scale: jax.Array | float,
    rescale_share: jax.Array | float = 0.0,
    perp_neg: PerpNeg | None = None,
    x0_share: float = 0.0,
) -> jax.Array:
    """Returns the guided prediction, by ONE network call on the batch under each condition.

    z_t [B, h, w, c], t [B], cond of B, uncond of B or 1 -> [B, h, w, c], of the type that
    `prior.predict` returns: as in diffusers, guidance acts on the network's own prediction.
    """
    conditions = [jax.tree.map(lambda u, c: jnp.broadcast_to(u, c.shape), uncond, cond), cond]
    if perp_neg is not None:
        conditions += [
            jax.tree.map(lambda x, i=i: x[:, i], perp_neg.cond)
            for i in range(perp_neg.weights.shape[1])
        ]
    prediction = prior.predict(
        params,
        jnp.concatenate([z_t] * len(conditions)),
        jnp.concatenate([t] * len(conditions)),
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions),
    )
    without, with_text, *others = jnp.split(prediction, len(conditions))
    guided = classifier_free(with_text, without, scale)
    if perp_neg is not None:
        guided -= scale * perpendicular_part(
            with_text - without, jnp.stack(others, 1) - without[:, None], perp_neg.weights
        )
    guided = rescale(guided, with_text, rescale_share)
    return rescale_x0(guided, with_text, z_t, t, prior, x0_share) if x0_share else guided
