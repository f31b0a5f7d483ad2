"""The file of prompts, as main and evaluate read it. What is wrong with one: main_test.py."""

import io
import os
import sys
import threading
import types

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


def test_prompts_may_come_from_a_pipe(monkeypatch, tmp_path):
    stdin = types.SimpleNamespace(buffer=io.BytesIO(b"a cup\na mug\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert read_prompts("-") == ["a cup", "a mug"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a cup\n",))
    writer.start()
    assert read_prompts(str(pipe)) == ["a cup"]
    writer.join()
