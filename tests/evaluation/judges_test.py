"""Who judges, among what, and that the names of two metrics are never the same."""

import shutil

import numpy as np
import pytest

from dreamfusion_jax.evaluation.judges import find_judge, load_judge, prompt_pair
from dreamfusion_jax.evaluation.score import r_precision
from dreamfusion_jax.runtime.errors import PriorError, UserError
from dreamfusion_jax.toybox import captions, judge

# In the manner of the paper's: sentences, of which two are the same beyond what is read.
PROMPTS = [
    "A blue bird standing next to a painting of flowers.",
    "a red chair",
    "A Red Chair",
    "a red chair " * 30 + "with blue legs",
    "a red chair " * 30 + "with green legs",
]


def test_toybox_clip_chooses_among_all_that_the_toybox_says():
    prompts = captions.benchmark_prompts()
    directory = find_judge("toybox-clip", "", prompts)
    loaded = load_judge("toybox-clip", directory, prompts)
    assert list(loaded.metrics().values()) == [
        "r_precision/albedo/260 pairs/toybox-clip",
        "r_precision/shaded/260 pairs/toybox-clip",
        "r_precision/textureless/26 kinds/toybox-clip",
        "fronts/albedo/8 sides/toybox-azimuth",
    ]
    prompt = "an orange castle"
    assert captions.all_pairs()[loaded.colored.row(prompt)] == ("orange", "castle")
    assert captions.KINDS[loaded.textureless.row(prompt)] == "castle"


def test_a_clip_chooses_among_the_prompts_each_of_them_once(clip_folder):
    directory = find_judge(str(clip_folder), "", PROMPTS)
    loaded = load_judge(str(clip_folder), directory, PROMPTS)
    rows = [loaded.colored.row(prompt) for prompt in PROMPTS]
    # Letters' case and what is beyond the tokenizer's length are nothing to a CLIP.
    assert sorted(set(rows)) == [0, 1, 2] and rows[1] == rows[2] and rows[3] == rows[4]
    name = f"small-clip@{loaded.sha256[:8]}"
    assert loaded.metrics() == {
        kind: f"r_precision/{kind}/3 prompts/{name}" for kind in ("albedo", "shaded", "textureless")
    }
    embeds = loaded.colored.embeds
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1.0, atol=1e-5)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        view_embeds = embeds[[row, row, (row + 1) % 3, row]]
        assert r_precision(view_embeds, loaded.colored, prompt) == 0.75


def test_judges_of_other_weights_have_other_names(clip_folder, tmp_path):
    other = shutil.copytree(judge.DIRECTORY, tmp_path / "small-clip")
    first, second = (load_judge(str(at), at, ["a cup"]) for at in (clip_folder, other))
    assert not set(first.metrics().values()) & set(second.metrics().values())


@pytest.mark.parametrize("prompt", ["a chair", "a mauve chair", "a red or blue chair", ""])
def test_a_prompt_that_cannot_be_judged_is_refused(prompt):
    for refuses in (prompt_pair, lambda p: find_judge("toybox-clip", "", ["a red chair", p])):
        with pytest.raises(UserError, match="color and kind.*--judge"):
            refuses(prompt)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("no such", "", "--judge=no such is not a directory.*openai/clip"),
        ("toybox-clip", "main", "--judge_revision needs another --judge"),
        (".", "..", "--judge_revision=.. is not a valid"),
        (".", "", "no config.json; it must hold a CLIPModel"),
    ],
)
def test_a_judge_that_there_is_not_is_told_of(name, revision, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, PriorError), match=message) as error:
        find_judge(name, revision, ["a red chair", "a blue mug"])
    assert "\n" not in str(error.value)


def test_a_clip_with_one_prompt_to_choose_from_is_refused(clip_folder):
    with pytest.raises(UserError, match="would always be right .*--prompts_file"):
        find_judge(str(clip_folder), "", ["a red chair", "a red chair"])
