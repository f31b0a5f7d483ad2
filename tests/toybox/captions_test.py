"""The words: what is held out, which words name which camera, what captions may contain."""

import hashlib

import numpy as np
import pytest

from dreamfusion_jax.toybox import captions


def test_held_out_pairs_are_fixed_by_their_names_alone():
    hidden = captions.held_out_pairs()
    assert len(hidden) == captions.HELD_OUT_COUNT >= 24
    digest = lambda pair: hashlib.sha256(f"{pair[0]} {pair[1]}".encode()).hexdigest()  # noqa: E731
    seen = set(captions.all_pairs()) - hidden
    assert max(map(digest, hidden)) < min(map(digest, seen))
    # The list that the shipped weights were trained with: changing words would change it.
    names = "; ".join(sorted(" ".join(pair) for pair in hidden))
    assert hashlib.sha256(names.encode()).hexdigest().startswith("085503ee"), names


@pytest.mark.parametrize(("count", "held_out", "per_kind"), [(10, 3, 1), (40, 12, 2), (5, 0, 1)])
def test_benchmark_prompts_are_so_many_of_each_sort(count, held_out, per_kind):
    prompts = captions.benchmark_prompts(count, held_out, per_kind)
    pairs = [captions.pair_in(prompt) for prompt in prompts]
    kinds = [kind for _, kind in pairs]
    assert len(set(prompts)) == count and max(map(kinds.count, kinds)) == per_kind
    assert sum(pair in captions.held_out_pairs() for pair in pairs) == held_out
    order = [hashlib.sha256(f"benchmark {' '.join(pair)}".encode()).digest() for pair in pairs]
    assert order == sorted(order)


def test_the_benchmark_is_the_published_numbers():
    first = "a red house, a cyan mug, a pink robot, a pink truck, a green rocket, a green fish"
    assert captions.benchmark_prompts()[:6] == first.split(", ")
    named = "\n".join(captions.benchmark_prompts(40, 12, 2))
    assert hashlib.sha256(named.encode()).hexdigest().startswith("dbbcf250"), named


@pytest.mark.parametrize("prompt", ["a chair", "a mauve chair", "a red chair with blue legs", ""])
def test_a_prompt_may_name_no_single_pair(prompt):
    assert captions.pair_in(prompt) is None
    assert captions.pair_in("An ORANGE castle, please") == ("orange", "castle")


@pytest.mark.parametrize(
    "azimuth_deg, elevation_deg, words",
    [
        (0.0, 20.0, "front view, medium angle"),
        (359.0, 0.0, "front view, low angle"),
        (90.0, 50.0, "left side view, high angle"),
        (181.0, 20.0, "back view, medium angle"),
        (270.0, 20.0, "right side view, medium angle"),
        (22.0, 20.0, "front view, medium angle"),
        (23.0, 20.0, "front left view, medium angle"),
    ],
)
def test_view_index_names_the_camera(azimuth_deg, elevation_deg, words):
    index = captions.view_index(np.float32(azimuth_deg), np.float32(elevation_deg))
    assert captions.view_phrases()[int(index)] == words


def test_coarse_phrase_is_the_papers():
    assert captions.coarse_phrase(10.0, 61.0) == "overhead view"
    assert captions.coarse_phrase(-80.0, 0.0) == captions.coarse_phrase(80.0, 0.0) == "side view"
    assert captions.coarse_phrase(190.0, 0.0) == "back view"


def test_captions_use_the_vocabulary_and_name_the_subject():
    rng = np.random.default_rng(0)
    known = set(captions.vocabulary())
    for kind in captions.KINDS:
        subject = captions.Subject(kind, "orange", "blue")
        words = captions.caption(rng, subject, 135.0, 30.0).replace(",", "").split()
        assert set(words) <= known
        assert {"orange", kind, "blue"} <= set(words)


def test_unknown_words_are_those_no_caption_holds():
    assert captions.unknown_words("a red Zebra with blue legs, front view!") == ["zebra"]


def test_strip_colors_leaves_the_shape():
    assert captions.strip_colors("an orange castle") == "a castle"
    assert captions.strip_colors("a chair") == "a chair"
    assert captions.with_article("a umbrella and a red cup") == "an umbrella and a red cup"
