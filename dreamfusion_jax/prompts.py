"""From the camera's angles to the words that name them, and to a row of a text-embedding table.

Text-to-image models rarely draw an object from behind unless they are told to, so the prompt is
completed with words for the view (Poole et al. 2022, section 3.2). All completed prompts are
embedded once, before the first step; in the step a view only picks its row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.prior import Prior
from dreamfusion_jax.toybox import captions

PAPER_PHRASES = ("overhead view", "front view", "side view", "back view")
OVERHEAD_ELEVATION_DEG = 60.0
FRONT_HALF_WIDTH_DEG = 45.0


class TextTable(NamedTuple):
    """Embedded prompts.

    Attributes:
      rows: [R, L, D] the prompt with each of a scheme's phrases; see `table_prompts`.
      empty: [L, D] the text that guidance leads away from.
    """

    rows: jax.Array
    empty: jax.Array


def phrases(scheme: str) -> list[str]:
    """The view phrases of a scheme: "toybox", "paper" or "none" (one empty phrase)."""
    if scheme == "toybox":
        return captions.view_phrases()
    return list(PAPER_PHRASES) if scheme == "paper" else [""]


def phrase_index(scheme: str, azimuth_deg: jax.Array, elevation_deg: jax.Array) -> jax.Array:
    """Index into `phrases(scheme)` for cameras at these angles (degrees); int32, same shape."""
    if scheme == "toybox":
        return captions.view_index(azimuth_deg, elevation_deg)
    if scheme == "none":
        return jnp.zeros(jnp.shape(azimuth_deg), jnp.int32)
    from_front = jnp.abs((azimuth_deg + 180.0) % 360.0 - 180.0)
    around = jnp.where(
        from_front < FRONT_HALF_WIDTH_DEG,
        PAPER_PHRASES.index("front view"),
        jnp.where(
            from_front > 180.0 - FRONT_HALF_WIDTH_DEG,
            PAPER_PHRASES.index("back view"),
            PAPER_PHRASES.index("side view"),
        ),
    )
    overhead = PAPER_PHRASES.index("overhead view")
    return jnp.where(elevation_deg > OVERHEAD_ELEVATION_DEG, overhead, around).astype(jnp.int32)


def table_prompts(prompt: str, scheme: str) -> list[str]:
    """The completed prompts, in the order of the table's rows.

    The toybox draws textureless renders under captions without a colour, so that its scheme has a
    second block of rows: the same phrases after the prompt without its colour words.
    """
    subjects = [prompt]
    if scheme == "toybox":
        subjects.append(captions.strip_colors(prompt))
    return [
        f"{subject}, {phrase}" if phrase else subject
        for subject in subjects
        for phrase in phrases(scheme)
    ]


def table_row(
    scheme: str, azimuth_deg: jax.Array, elevation_deg: jax.Array, textureless: jax.Array
) -> jax.Array:
    """The row [] int32 of the table for a view; `textureless` [] is a bool."""
    index = phrase_index(scheme, azimuth_deg, elevation_deg)
    if scheme != "toybox":
        return index
    return index + jnp.where(textureless, len(phrases(scheme)), 0)


def text_table(prior: Prior, prompt: str, negative_prompt: str, scheme: str) -> TextTable:
    """Embeds the completed prompts and the negative prompt; runs on the host, once."""
    rows = prior.encode_text(table_prompts(prompt, scheme))
    return TextTable(rows, prior.encode_text([negative_prompt])[0])
