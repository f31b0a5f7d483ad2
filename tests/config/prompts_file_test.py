"""The file of prompts, as main and evaluate read it. What is wrong with one: main_test.py."""

from dreamfusion_jax.config.prompts_file import read_prompts


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


def test_a_prompt_in_two_spellings_of_unicode_is_one(tmp_path):
    assert len(read_prompts(write(tmp_path, "a caf\u00e9\na cafe\u0301\n"))) == 1
