"""What a costly text encoder returned is kept in the work folder, for it and its prompts alone."""

import chex
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Condition
from dreamfusion_jax.runs.text_embeddings import FOLDER, with_kept_text
from dreamfusion_jax.runs.workdir import check_places

PROMPTS = ["a cup", "a cup, side view", ""]


@pytest.fixture
def make_prior():
    """Makes a prior whose text encoder notes what it is asked for."""

    def make(digest="0"):
        calls = []

        def encode_text(prompts):
            calls.append(list(prompts))
            rows = [np.full((2, 3), len(prompt) + ord(digest), np.float32) for prompt in prompts]
            return Condition(np.stack(rows))

        prior = analytic_prior(0.2, 0.1)._replace(encode_text=encode_text)
        return prior._replace(text_digest=lambda: digest), calls

    return make


def test_prompts_are_encoded_together_and_only_once(make_prior, tmp_path):
    prior, calls = make_prior()
    kept = with_kept_text(prior, tmp_path, [*PROMPTS, *PROMPTS])
    chex.assert_trees_all_equal(kept.encode_text(PROMPTS[::-1]), prior.encode_text(PROMPTS[::-1]))
    assert calls.pop(0) == PROMPTS
    calls.clear()
    again = with_kept_text(prior, tmp_path, [*PROMPTS, "a cup, back view"])
    assert calls == [["a cup, back view"]]
    chex.assert_trees_all_equal(again.encode_text(PROMPTS), kept.encode_text(PROMPTS))
    check_places(tmp_path)


def test_another_text_encoder_finds_nothing(make_prior, tmp_path):
    with_kept_text(make_prior("0")[0], tmp_path, PROMPTS)
    other, calls = make_prior("1")
    kept = with_kept_text(other, tmp_path, PROMPTS)
    assert calls == [PROMPTS]
    assert kept.encode_text([""]).tokens[0, 0, 0] == ord("1")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x93NUMPY junk"])
def test_a_damaged_file_is_made_anew(damage, make_prior, tmp_path):
    prior, calls = make_prior()
    kept = with_kept_text(prior, tmp_path, PROMPTS)
    for path in (tmp_path / FOLDER).iterdir():
        path.write_bytes(damage)
    again = with_kept_text(prior, tmp_path, PROMPTS)
    assert calls == [PROMPTS, PROMPTS]
    chex.assert_trees_all_equal(again.encode_text(PROMPTS), kept.encode_text(PROMPTS))
    calls.clear()
    with_kept_text(prior, tmp_path, PROMPTS)
    assert not calls, "written anew"


def test_a_text_encoder_that_costs_little_leaves_no_files(tmp_path):
    prior = analytic_prior(0.2, 0.1)
    assert with_kept_text(prior, tmp_path, PROMPTS) is prior
    assert not list(tmp_path.iterdir())
