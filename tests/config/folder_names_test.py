"""Every prompt has a folder of its own, and a prompt in two spellings of Unicode has one."""

import json
import re

import pytest

from dreamfusion_jax.config.folder_names import folder_names, free_folder, slug

LONG = 30 * "very " + "large "


def test_short_prompts_are_named_by_their_words():
    assert slug("A red chair, front view!") == "a-red-chair-front-view"


@pytest.mark.parametrize(
    "prompts",
    [
        [LONG + "chair", LONG + "table"],
        [300 * "\U0001d518" + "a", 300 * "\U0001d518" + "b"],
        ["???", "!!!"],
        ["a cup", "A cup!", "a-cup"],
    ],
    ids=["long", "long in bytes", "no words", "the same words"],
)
def test_prompts_do_not_share_a_folder(prompts):
    names = folder_names(prompts)
    assert len(set(names)) == len(prompts) and names == folder_names(prompts)
    for name in names:
        assert len(name) <= 80 and len(name.encode()) <= 240 and re.fullmatch(r"[\w-]+", name)


def test_two_spellings_of_a_letter_are_one_name():
    assert slug("a caf\u00e9") == slug("a cafe\u0301") == "a-caf\u00e9"


def test_a_folder_of_another_prompt_is_not_taken(tmp_path):
    folder = free_folder(tmp_path, "a cup")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"prompt": "a cup"}}))
    assert free_folder(tmp_path, "a cup") == folder
    assert free_folder(tmp_path, "A cup!") != folder
    (folder / "config.json").write_text("[]")
    assert free_folder(tmp_path, "A cup!") == folder
