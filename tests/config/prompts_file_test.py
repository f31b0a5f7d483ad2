"""The file of prompts, as main and evaluate read it. What is wrong with one: main_test.py."""

import pytest

from dreamfusion_jax.config.prompts_file import read_prompts
from dreamfusion_jax.runtime.errors import UserError


def write(folder, text):
    path = folder / "prompts.txt"
    path.write_bytes(text.encode())
    return str(path)


def test_prompts_are_lines_in_their_order_each_once(tmp_path):
    text = '\ufeffa red chair\r\n\n  # a note\n a sign says "#1"; it\'s 100 % new. \n'
    text += "a red chair\na cup"
    assert read_prompts(write(tmp_path, text)) == [
        "a red chair",
        'a sign says "#1"; it\'s 100 % new.',
        "a cup",
    ]


def test_two_prompts_that_would_share_a_folder_are_both_named(tmp_path):
    with pytest.raises(UserError, match="'a cup' and 'A cup!'.*folder a-cup"):
        read_prompts(write(tmp_path, "a cup\na mug\nA cup!\n"))
