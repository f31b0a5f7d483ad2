"""Words that describe a camera's view, and their text embeddings.

Text-to-image models rarely draw an object from behind unless they are told to, so the prompt is
completed with words for the view (Poole et al. 2022, section 3.2). All completed prompts are
embedded once, before the first step; in the step a view only mixes rows of that table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.guidance import PerpNeg
from dreamfusion_jax.diffusion.priors.prior import Condition, Prior
from dreamfusion_jax.distillation.options import ViewPromptOptions

PAPER_PHRASES = ("overhead view", "front view", "side view", "back view")
_OVERHEAD, _FRONT, _SIDE, _BACK = range(len(PAPER_PHRASES))
OVERHEAD_ELEVATION_DEG = 60.0
FRONT_HALF_WIDTH_DEG = 45.0


class ViewScheme(NamedTuple):
    """The words by which a family of models describes the views of an object.

    Attributes:
      phrases: that complete a prompt.
      nearest: azimuth, elevation in degrees [...] -> index of the nearest phrase, int32 [...].
      neighbors: azimuth, elevation -> the two nearest phrases [..., 2], and the share [...] of the
        first in an interpolation between them.
      textureless: prompt -> the prompt of its textureless render; None: the same.
      note: prompt -> a note for the user, such as unknown words; or "".
    """

    phrases: tuple[str, ...]
    nearest: Callable[[jax.Array, jax.Array], jax.Array]
    neighbors: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    textureless: Callable[[str], str] | None = None
    note: Callable[[str], str] | None = None


class TextTable(NamedTuple):
    """Embedded prompts.

    Attributes:
      rows: leaves [R, ...], the prompt with each of a scheme's phrases; see `table_prompts`.
      negatives: [N, ...] the texts to guide away from; see `negative_prompts`.
      plain: [1, ...] the prompt without words for a view.
      empty: [1, ...] the empty prompt.
    """

    rows: Condition
    negatives: Condition
    plain: Condition
    empty: Condition


class ViewText(NamedTuple):
    """The rows that a view takes from the table. Leaves may carry leading batch axes.

    Attributes:
      rows, mix_weights: [..., 2] rows of the table and how they are mixed; the weights sum to 1.
      negative: [...] row of the negative prompts.
      perp_neg_rows, perp_neg_weights: [..., 2] rows that Perp-Neg guides away from, and
        their weights.
    """

    rows: jax.Array
    mix_weights: jax.Array
    negative: jax.Array
    perp_neg_rows: jax.Array
    perp_neg_weights: jax.Array


def _paper_index(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> jax.Array:
    from_front = _from_front(azimuth_deg)
    at_back = from_front > 180.0 - FRONT_HALF_WIDTH_DEG
    around = jnp.where(from_front < FRONT_HALF_WIDTH_DEG, _FRONT, jnp.where(at_back, _BACK, _SIDE))
    return jnp.where(elevation_deg > OVERHEAD_ELEVATION_DEG, _OVERHEAD, around).astype(jnp.int32)


def _paper_neighbors(
    azimuth_deg: jax.Array, elevation_deg: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the two nearest of front, side and back; or overhead alone."""
    quarter_turns = _from_front(azimuth_deg) / 90.0
    in_front = quarter_turns < 1.0
    first = jnp.where(in_front, _FRONT, _SIDE)
    share = jnp.where(in_front, 1.0, 2.0) - quarter_turns
    overhead = elevation_deg > OVERHEAD_ELEVATION_DEG
    pair = jnp.stack([first, first + 1], axis=-1)
    return jnp.where(overhead[..., None], _OVERHEAD, pair), jnp.where(overhead, 1.0, share)


def _one_index(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> jax.Array:
    return jnp.zeros(jnp.shape(azimuth_deg), jnp.int32)


def _one_neighbor(azimuth_deg: jax.Array, elevation_deg: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((*jnp.shape(azimuth_deg), 2), jnp.int32), jnp.ones_like(azimuth_deg)


PAPER = ViewScheme(PAPER_PHRASES, _paper_index, _paper_neighbors)
NONE = ViewScheme(("",), _one_index, _one_neighbor)


def known_schemes(more: Mapping[str, ViewScheme]) -> dict[str, ViewScheme]:
    """Returns all schemes by the names that --view_words gives them: ours, and `more`."""
    return {"paper": PAPER, "none": NONE, **more}


def completed(prompt: str, phrase: str) -> str:
    """Returns the prompt with one of a scheme's phrases, as the prior reads it."""
    return _join(prompt, phrase)


def table_prompts(prompt: str, scheme: ViewScheme) -> list[str]:
    """Returns the completed prompts, in the order of the table's rows.

    Where textureless renders have a prompt of their own, a second block of rows has the same
    phrases after it.
    """
    subjects = [prompt]
    if scheme.textureless is not None:
        subjects.append(scheme.textureless(prompt))
    return [_join(subject, phrase) for subject in subjects for phrase in scheme.phrases]


def negative_prompts(options: ViewPromptOptions, scheme: ViewScheme) -> list[str]:
    """Returns the negative prompt; with `negative_views` one a phrase, listing all the others."""
    if not options.negative_views:
        return [options.negative_prompt]
    names = scheme.phrases
    return [_join(options.negative_prompt, *(n for n in names if n != own)) for own in names]


def all_prompts(prompt: str, options: ViewPromptOptions, scheme: ViewScheme) -> list[str]:
    """Returns every text that `text_table` embeds."""
    return [*table_prompts(prompt, scheme), *negative_prompts(options, scheme), prompt, ""]


def text_table(
    prior: Prior, prompt: str, options: ViewPromptOptions, scheme: ViewScheme
) -> TextTable:
    """Embeds the completed prompts and the negative ones; runs on the host, once."""
    return TextTable(
        rows=prior.encode_text(table_prompts(prompt, scheme)),
        negatives=prior.encode_text(negative_prompts(options, scheme)),
        plain=prior.encode_text([prompt]),
        empty=prior.encode_text([""]),
    )


def view_text(
    options: ViewPromptOptions,
    scheme: ViewScheme,
    azimuth_deg: jax.Array,
    elevation_deg: jax.Array,
    textureless: jax.Array,
) -> ViewText:
    """Returns the rows that views at these angles (degrees) take; `textureless` is a bool."""
    nearest = scheme.nearest(azimuth_deg, elevation_deg)
    pair, share = jnp.stack([nearest, nearest], axis=-1), jnp.ones_like(azimuth_deg)
    if options.interpolate_views or options.perp_neg:
        pair, share = scheme.neighbors(azimuth_deg, elevation_deg)
    second_block = len(scheme.phrases) if scheme.textureless is not None else 0
    perp_neg_rows, perp_neg_weights = _perp_neg(options, azimuth_deg, elevation_deg)
    return ViewText(
        rows=pair + jnp.where(textureless, second_block, 0)[..., None],
        mix_weights=jnp.stack([share, 1.0 - share], axis=-1),
        negative=nearest if options.negative_views else jnp.zeros_like(nearest),
        perp_neg_rows=perp_neg_rows,
        perp_neg_weights=perp_neg_weights,
    )


def mixed(table: TextTable, text: ViewText) -> Condition:
    """Returns the conditions of views [B], mixed from rows of the table."""

    def mix(rows: jax.Array) -> jax.Array:
        return jnp.einsum(
            "bk,bk...->b...", text.mix_weights, rows[text.rows], precision=jax.lax.Precision.HIGHEST
        )

    return jax.tree.map(mix, table.rows)


def negatives(table: TextTable, text: ViewText) -> Condition:
    """Returns the conditions that views [B] are guided away from."""
    return jax.tree.map(lambda rows: rows[text.negative], table.negatives)


def perp_neg(table: TextTable, text: ViewText) -> PerpNeg:
    """Returns the conditions and weights by which Perp-Neg guides views [B]."""
    cond = jax.tree.map(lambda rows: rows[text.perp_neg_rows], table.rows)
    return PerpNeg(cond, text.perp_neg_weights)


def _perp_neg(
    options: ViewPromptOptions, azimuth_deg: jax.Array, elevation_deg: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the rows to lead away from [..., 2] and the weights [..., 2] of their perpendicular
    parts.

    Between front and side, from both, each the less the nearer the view is to it; between side and
    back, from side and front. The decays are those of threestudio's default settings.
    """
    if not options.perp_neg:
        none = jnp.zeros((*jnp.shape(azimuth_deg), 2))
        return none.astype(jnp.int32), none
    share = _paper_neighbors(azimuth_deg, jnp.zeros_like(azimuth_deg))[1]
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
    """Returns the angle [0, 180] to the front."""
    return jnp.abs((azimuth_deg + 180.0) % 360.0 - 180.0)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
