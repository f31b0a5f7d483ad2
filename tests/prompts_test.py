import chex
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax import prompts
from dreamfusion_jax.diffusion.prior import analytic_prior


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "words"),
    [
        (0, 0, "front view"),
        (44, 0, "front view"),
        (316, 59, "front view"),
        (46, 0, "side view"),
        (270, 0, "side view"),
        (180, 0, "back view"),
        (136, 0, "back view"),
        (-180, 10, "back view"),
        (180, 61, "overhead view"),
    ],
)
def test_paper_words(azimuth_deg, elevation_deg, words):
    index = prompts.phrase_index("paper", jnp.float32(azimuth_deg), jnp.float32(elevation_deg))
    assert prompts.phrases("paper")[index] == words


def test_toybox_words_tell_left_from_right():
    for azimuth_deg, words in ((0, "front"), (90, "left side"), (180, "back"), (270, "right side")):
        index = prompts.phrase_index("toybox", jnp.float32(azimuth_deg), jnp.float32(30))
        assert prompts.phrases("toybox")[index] == f"{words} view, medium angle"


@pytest.mark.parametrize("scheme", ["toybox", "paper", "none"])
def test_a_row_holds_the_prompt_with_the_words_of_its_view(scheme):
    azimuth_deg, elevation_deg = jnp.meshgrid(
        jnp.arange(-180.0, 360.0, 40.0), jnp.arange(-10.0, 91.0, 20.0)
    )
    index = prompts.phrase_index(scheme, azimuth_deg, elevation_deg)
    chex.assert_shape(index, azimuth_deg.shape)
    row = prompts.table_row(scheme, azimuth_deg, elevation_deg, jnp.asarray(False))
    table = prompts.table_prompts("a red chair", scheme)
    for r, i in zip(np.ravel(row), np.ravel(index), strict=True):
        assert table[r] == ", ".join(filter(None, ["a red chair", prompts.phrases(scheme)[i]]))


def test_textureless_toybox_views_are_described_without_colour():
    front = jnp.float32(0), jnp.float32(0)
    row = prompts.table_row("toybox", *front, jnp.asarray(True))
    table = prompts.table_prompts("a red chair with blue legs", "toybox")
    assert table[row].startswith("a chair with legs, front view")
    row = prompts.table_row("paper", *front, jnp.asarray(True))
    assert prompts.table_prompts("a red chair", "paper")[row] == "a red chair, front view"


def test_the_table_embeds_every_row_and_the_negative_prompt_once():
    asked = []

    def encode_text(texts):
        asked.append(list(texts))
        return jnp.asarray([[[float(len(text))]] for text in texts])

    prior = analytic_prior(0.5, 0.1)._replace(encode_text=encode_text)
    table = prompts.text_table(prior, "a cup", "blurry", "paper")
    assert asked == [prompts.table_prompts("a cup", "paper"), ["blurry"]]
    chex.assert_shape(table.rows, (4, 1, 1))
    chex.assert_trees_all_equal(table.empty, jnp.array([[6.0]]))
