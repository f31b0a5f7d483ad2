"""The vocabulary of the real models, which the package open-clip-torch carries."""

from pathlib import Path

import numpy as np
import pytest
import transformers

from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from tests.pipelines import MAX_LENGTH, VOCABULARY_SIZE, write_clip_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    try:
        write_clip_tokenizer(folder)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return folder


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", []),
        # As every user of these models has seen them printed.
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo of a CAT", [320, 1125, 539, 320, 2368]),
    ],
)
def test_known_ids(prompt, words, folder):
    ids = load_tokenizer(folder, MAX_LENGTH, VOCABULARY_SIZE)([prompt])
    filled = [49406, *words, 49407]
    assert ids.shape == (1, MAX_LENGTH) and ids.dtype == np.int32
    assert ids[0].tolist() == filled + [49407] * (MAX_LENGTH - len(filled))


@pytest.mark.parametrize(
    "prompt",
    [
        "a DSLR photo of a squirrel, wearing a kimono; 8k, trending on artstation!!",
        "caf\u00e9 \u2014 \u6771\u4eac \U0001f984 na\u00efve",
        "it's 1234.5 <b>don't</b> &amp; e-mail",
        "very " * 100,
    ],
)
def test_ids_are_those_of_the_pipelines_tokenizer(prompt, folder):
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)(
        [prompt], padding="max_length", max_length=MAX_LENGTH, truncation=True
    ).input_ids
    assert load_tokenizer(folder, MAX_LENGTH, VOCABULARY_SIZE)([prompt]).tolist() == theirs
