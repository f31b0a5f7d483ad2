"""From the camera's angles to the words that name them, and to a text embedding.

Text-to-image models rarely draw an object from behind unless they are told to, so the prompt is
completed with words for the view (Poole et al. 2022, section 3.2). All completed prompts are
embedded once, before the first step; in the step a view only mixes rows of that table.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.prior import Prior
from dreamfusion_jax.toybox import captions

PAPER_PHRASES = ("overhead view", "front view", "side view", "back view")
_OVERHEAD, _FRONT, _SIDE, _BACK = range(len(PAPER_PHRASES))
OVERHEAD_ELEVATION_DEG = 60.0
FRONT_HALF_WIDTH_DEG = 45.0


class TextOptions(NamedTuple):
    """How views are put into words.

    Attributes:
      scheme: toybox | paper | none.
      interpolate: mix the embeddings of the two nearest azimuths instead of taking the nearest.
      negative_views: complete the negative prompt with the words of all other views.
      perp_neg: guide away from the neighboring views, too, and mix the embeddings of the paper's
        scheme as `interpolate` does (Armandpour et al. 2023).
    """

    scheme: str = "toybox"
    interpolate: bool = False
    negative_views: bool = False
    perp_neg: bool = False


class TextTable(NamedTuple):
    """Embedded prompts.

    Attributes:
      rows: [R, L, D] the prompt with each of a scheme's phrases; see `table_prompts`.
      negatives: [N, L, D] the texts that guidance leads away from; see `negative_prompts`.
    """

    rows: jax.Array
    negatives: jax.Array


class ViewText(NamedTuple):
    """What a view takes from the table. Leaves may carry leading batch axes.

    Attributes:
      rows, shares: [..., 2] rows of the table and how they are mixed; the shares add up to 1.
      negative: [...] row of the negative prompts.
      against, against_weights: [..., 2] rows that Perp-Neg leads away from, and how strongly.
    """

    rows: jax.Array
    shares: jax.Array
    negative: jax.Array
    against: jax.Array
    against_weights: jax.Array


def phrases(scheme: str) -> list[str]:
    """The view phrases of a scheme: "toybox", "paper" or "none" (one empty phrase)."""
    if scheme == "toybox":
        return captions.view_phrases()
    return list(PAPER_PHRASES) if scheme == "paper" else [""]


def table_prompts(prompt: str, scheme: str) -> list[str]:
    """The completed prompts, in the order of the table's rows.

    The toybox draws textureless renders under captions without a colour, so that its scheme has a
    second block of rows: the same phrases after the prompt without its colour words.
    """
    subjects = [prompt]
    if scheme == "toybox":
        subjects.append(captions.strip_colors(prompt))
    return [_join(subject, phrase) for subject in subjects for phrase in phrases(scheme)]


def negative_prompts(negative_prompt: str, options: TextOptions) -> list[str]:
    """The negative prompt; with `negative_views` one a phrase, listing all the others."""
    if not options.negative_views:
        return [negative_prompt]
    names = phrases(options.scheme)
    return [_join(negative_prompt, *(name for name in names if name != own)) for own in names]


def text_table(prior: Prior, prompt: str, negative_prompt: str, options: TextOptions) -> TextTable:
    """Embeds the completed prompts and the negative ones; runs on the host, once."""
    rows = prior.encode_text(table_prompts(prompt, options.scheme))
    return TextTable(rows, prior.encode_text(negative_prompts(negative_prompt, options)))


def phrase_index(scheme: str, azimuth_deg: jax.Array, elevation_deg: jax.Array) -> jax.Array:
    """Index into `phrases(scheme)` for cameras at these angles (degrees); int32, same shape."""
    if scheme == "toybox":
        return captions.view_index(azimuth_deg, elevation_deg)
    if scheme == "none":
        return jnp.zeros(jnp.shape(azimuth_deg), jnp.int32)
    from_front = _from_front(azimuth_deg)
    behind = from_front > 180.0 - FRONT_HALF_WIDTH_DEG
    around = jnp.where(from_front < FRONT_HALF_WIDTH_DEG, _FRONT, jnp.where(behind, _BACK, _SIDE))
    return jnp.where(elevation_deg > OVERHEAD_ELEVATION_DEG, _OVERHEAD, around).astype(jnp.int32)


def view_text(
    options: TextOptions, azimuth_deg: jax.Array, elevation_deg: jax.Array, textureless: jax.Array
) -> ViewText:
    """What views at these angles (degrees) take from the table; `textureless` is a bool."""
    nearest = phrase_index(options.scheme, azimuth_deg, elevation_deg)
    pair, share = jnp.stack([nearest, nearest], axis=-1), jnp.ones_like(azimuth_deg)
    if (options.interpolate or options.perp_neg) and options.scheme == "paper":
        pair, share = _paper_mix(azimuth_deg, elevation_deg)
    elif options.interpolate and options.scheme == "toybox":
        pair, share = _toybox_mix(azimuth_deg, elevation_deg)
    second_block = len(phrases(options.scheme)) if options.scheme == "toybox" else 0
    against, against_weights = _perp_neg(options, azimuth_deg, elevation_deg)
    return ViewText(
        rows=pair + jnp.where(textureless, second_block, 0)[..., None],
        shares=jnp.stack([share, 1.0 - share], axis=-1),
        negative=nearest if options.negative_views else jnp.zeros_like(nearest),
        against=against,
        against_weights=against_weights,
    )


def embed(table: TextTable, text: ViewText) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The embeddings of a batch of views [B]: with text [B, L, D], the negative prompt's [B, L, D],
    and those that Perp-Neg leads away from [B, 2, L, D]."""
    mixed = jnp.einsum("bk,bkld->bld", text.shares, table.rows[text.rows])
    return mixed, table.negatives[text.negative], table.rows[text.against]


def _paper_mix(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two nearest of front, side and back, and the share of the first; or overhead alone."""
    quarter_turns = _from_front(azimuth_deg) / 90.0
    in_front = quarter_turns < 1.0
    first = jnp.where(in_front, _FRONT, _SIDE)
    share = jnp.where(in_front, 1.0, 2.0) - quarter_turns
    overhead = elevation_deg > OVERHEAD_ELEVATION_DEG
    pair = jnp.stack([first, first + 1], axis=-1)
    return jnp.where(overhead[..., None], _OVERHEAD, pair), jnp.where(overhead, 1.0, share)


def _toybox_mix(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two nearest of the eight azimuths, at the nearest of the three elevations."""
    eighths = (azimuth_deg % 360.0) / 45.0
    lower = jnp.floor(eighths)
    pair = [captions.view_index(45.0 * (lower + side), elevation_deg) for side in (0, 1)]
    return jnp.stack(pair, axis=-1), 1.0 - (eighths - lower)


def _perp_neg(
    options: TextOptions, azimuth_deg: jax.Array, elevation_deg: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The rows to lead away from [..., 2] and the weights [..., 2] of their perpendicular parts.

    Between front and side, from both, each the less the nearer the view is to it; between side and
    back, from side and front. The weights go with a text that is itself the mix of the two views
    (`_paper_mix`). They are those of threestudio's default settings with the sign turned: it adds
    what `guidance.perp_neg` gives to be subtracted.
    """
    if not options.perp_neg:
        none = jnp.zeros((*jnp.shape(azimuth_deg), 2))
        return none.astype(jnp.int32), none
    share = _paper_mix(azimuth_deg, jnp.zeros_like(azimuth_deg))[1]
    in_front = _from_front(azimuth_deg) < 90.0

    def decay(height: float, shift: float, at: jax.Array) -> jax.Array:
        return height * jnp.exp(-0.5 * at) + shift

    between_front_and_side = [decay(4.0, -2.426, share), decay(4.0, -2.426, 1.0 - share)]
    between_side_and_back = [decay(1.0, -0.606, share), decay(1.0, 0.967, share)]
    weights = jnp.where(
        in_front[..., None],
        jnp.stack(between_front_and_side, axis=-1),
        jnp.stack(between_side_and_back, axis=-1),
    )
    rows = jnp.where(in_front[..., None], jnp.array([_FRONT, _SIDE]), jnp.array([_SIDE, _FRONT]))
    overhead = (elevation_deg > OVERHEAD_ELEVATION_DEG)[..., None]
    return rows, jnp.where(overhead, 0.0, jnp.maximum(weights, 0.0))


def _from_front(azimuth_deg: jax.Array) -> jax.Array:
    """The angle [0, 180] to the front."""
    return jnp.abs((azimuth_deg + 180.0) % 360.0 - 180.0)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
