"""Classifier-free guidance (Ho & Salimans, 2021), and its rescaling (Lin et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def guided_prediction(
    prior: Prior,
    weights: Any,
    z_t: jax.Array,
    t: jax.Array,
    text: jax.Array,
    empty_text: jax.Array,
    scale: jax.Array | float,
    rescale_share: jax.Array | float = 0.0,
) -> jax.Array:
    """The guided prediction, by ONE network call on the doubled batch.

    z_t [B, h, w, c], t [B], text [B, L, D], empty_text [B, L, D] or [1, L, D] -> [B, h, w, c], in
    the terms of `prior.predict`: as in diffusers, what is guided is what the network says.
    """
    empty_text = jnp.broadcast_to(empty_text, text.shape)
    prediction = prior.predict(
        weights,
        jnp.concatenate([z_t, z_t]),
        jnp.concatenate([t, t]),
        jnp.concatenate([empty_text, text]),
    )
    without, with_text = jnp.split(prediction, 2)
    guided = classifier_free(with_text, without, scale)
    return rescale(guided, with_text, rescale_share)
