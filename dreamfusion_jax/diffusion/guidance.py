"""Classifier-free guidance (Ho & Salimans, 2021), its rescaling (Lin et al., 2024), Perp-Neg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from dreamfusion_jax.diffusion.prior import Prior


def classifier_free(
    with_text: jax.Array, without: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """without + scale (with_text - without): diffusers' scale, of which 1 means no guidance."""
    return without + scale * (with_text - without)


def rescale(guided: jax.Array, with_text: jax.Array, share: jax.Array | float) -> jax.Array:
    """Gives `guided` back the spread of the prediction with text (Lin et al., 2024, section 3.4).

    Guidance stretches a prediction, and with it the picture's contrast. guided, with_text
    [B, ...]; `share` in [0, 1] of the rescaled prediction is mixed with the plain one.
    """
    axes = tuple(range(1, guided.ndim))
    spread = lambda x: jnp.std(x, axis=axes, keepdims=True)  # noqa: E731
    ratio = spread(with_text) / jnp.maximum(spread(guided), 1e-12)
    return guided * (1.0 + share * (ratio - 1.0))


class Against(NamedTuple):
    """Texts that Perp-Neg leads away from: text [B, N, L, D], weights [B, N]."""

    text: jax.Array
    weights: jax.Array


def perp_neg(towards: jax.Array, away: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i w_i (a_i - <a_i, d> / |d|^2 d): what is to be taken from the direction d of the text.

    Only the part of each unwanted direction a_i that is perpendicular to d counts, so that what
    both texts have in common is kept (Perp-Neg, Armandpour et al. 2023).

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
    weights: Any,
    z_t: jax.Array,
    t: jax.Array,
    text: jax.Array,
    empty_text: jax.Array,
    scale: jax.Array | float,
    rescale_share: jax.Array | float = 0.0,
    against: Against | None = None,
) -> jax.Array:
    """The guided prediction, by ONE network call on the batch with each of its texts.

    z_t [B, h, w, c], t [B], text [B, L, D], empty_text [B, L, D] or [1, L, D] -> [B, h, w, c], in
    the terms of `prior.predict`: as in diffusers, what is guided is what the network says.
    """
    texts = [jnp.broadcast_to(empty_text, text.shape), text]
    if against is not None:
        texts += list(jnp.moveaxis(against.text, 1, 0))
    prediction = prior.predict(
        weights,
        jnp.concatenate([z_t] * len(texts)),
        jnp.concatenate([t] * len(texts)),
        jnp.concatenate(texts),
    )
    without, with_text, *others = jnp.split(prediction, len(texts))
    guided = classifier_free(with_text, without, scale)
    if against is not None:
        guided -= scale * perp_neg(
            with_text - without, jnp.stack(others, 1) - without[:, None], against.weights
        )
    return rescale(guided, with_text, rescale_share)
