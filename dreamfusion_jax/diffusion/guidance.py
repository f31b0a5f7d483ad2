"""Classifier-free guidance (Ho & Salimans, 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from dreamfusion_jax.diffusion.prior import Prior


def classifier_free(
    eps_text: jax.Array, eps_empty: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """eps_empty + scale (eps_text - eps_empty): diffusers' scale, of which 1 means no guidance."""
    return eps_empty + scale * (eps_text - eps_empty)


def guided_noise(
    prior: Prior,
    weights: Any,
    z_t: jax.Array,
    t: jax.Array,
    text: jax.Array,
    empty_text: jax.Array,
    scale: jax.Array | float,
) -> jax.Array:
    """The guided noise estimate by ONE network call on the doubled batch.

    z_t [B, h, w, c], t [B], text [B, L, D], empty_text [B, L, D] or [1, L, D] -> eps [B, h, w, c].
    """
    empty_text = jnp.broadcast_to(empty_text, text.shape)
    eps = prior.predict_noise(
        weights,
        jnp.concatenate([z_t, z_t]),
        jnp.concatenate([t, t]),
        jnp.concatenate([empty_text, text]),
    )
    eps_empty, eps_text = jnp.split(eps, 2)
    return classifier_free(eps_text, eps_empty, scale)
