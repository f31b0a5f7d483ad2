"""The toybox's words for views: eight azimuths at three elevations, grays without a color."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.distillation.view_prompts import ViewScheme
from dreamfusion_jax.toybox import captions


def _neighbors(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the two nearest of the eight azimuths, at the nearest of the three elevations."""
    eighths = (azimuth_deg % 360.0) / 45.0
    lower = jnp.floor(eighths)
    pair = [captions.view_index(45.0 * (lower + side), elevation_deg) for side in (0, 1)]
    return jnp.stack(pair, axis=-1), 1.0 - (eighths - lower)


def _note(prompt: str) -> str:
    unknown = captions.unknown_words(prompt)
    if not unknown:
        return ""
    return (
        f"Note: the embedded prior never learned {', '.join(map(repr, unknown))}. It knows"
        f" {', '.join(captions.KINDS)}; in {', '.join(captions.COLORS)}."
    )


SCHEME = ViewScheme(
    phrases=tuple(captions.view_phrases()),
    nearest=captions.view_index,
    neighbors=_neighbors,
    textureless=captions.strip_colors,
    note=_note,
)
# By the name that settings give it.
SCHEMES = {"toybox": SCHEME}
