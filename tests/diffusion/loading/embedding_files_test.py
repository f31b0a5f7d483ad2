"""Textual inversion: new words are read as diffusers reads them, or refused by name."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dreamfusion_jax.diffusion.loading.parts import Additions
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.runs.open_prior import find_additions, prior_digest
from dreamfusion_jax.runtime.errors import PriorError, UserError
from tests.diffusion.conftest import TEXT_WIDTH


def vectors(count, seed=0, width=TEXT_WIDTH):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3])
def test_words_are_encoded_as_the_pipeline_does(count, pipeline, pipeline_dir, tmp_path):
    path, other = tmp_path / "a.safetensors", tmp_path / "dog.safetensors"
    rows = vectors(count)
    save_file({"<cup>": rows if count > 1 else rows[0]}, path)
    save_file({"emb_params": vectors(1, seed=1)}, other)
    oracle = diffusers.StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None)
    oracle.load_textual_inversion(tmp_path, weight_name=path.name)
    oracle.load_textual_inversion({"dog": torch.from_numpy(vectors(1, seed=1))})
    prior, _ = load_prior(pipeline_dir, additions=Additions((), [path, other]))
    prompts = ["a <cup> red", "dog", "a red chair"]
    theirs = oracle.encode_prompt(prompts, "cpu", 1, False)[0].numpy()
    ours = np.asarray(prior.encode_text(prompts).tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    plain = np.asarray(load_prior(pipeline_dir)[0].encode_text(prompts).tokens)
    np.testing.assert_allclose(ours[2], plain[2], atol=1e-6)
    assert np.abs(ours[0] - plain[0]).max() > 1e-2


REFUSED = {
    "another width": ({"<cup>": vectors(1, width=8)}, "takes up to 75 vectors of 16"),
    "too many": ({"<cup>": vectors(76)}, "takes up to 75 vectors"),
    "none": ({"<cup>": vectors(0)}, "takes up to 75 vectors"),
    "of SDXL": ({"clip_l": vectors(1), "clip_g": vectors(1)}, "is for SDXL, which this prior is"),
    "a model": ({"a": vectors(1), "b": vectors(1)}, "holds 2 tensors .a, b., not one"),
    "two words": ({"a cup": vectors(1)}, "'a cup' is not one that a prompt can hold"),
    "no word": ({"": vectors(1)}, "'' is not one that a prompt can hold"),
    "a known word": ({"ed</w>": vectors(1)}, "'ed</w>' is a token already"),
    "no numbers": ({"<cup>": np.full((1, 16), np.nan, np.float32)}, "holds what is no number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_word_of_this_model_is_refused(case, pipeline_dir, tmp_path):
    tensors, message = REFUSED[case]
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(PriorError, match=message) as error:
        load_prior(pipeline_dir, additions=Additions((), [path]))
    assert str(path) in str(error.value)


def test_one_word_in_two_files_is_refused(pipeline_dir, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_file({"<cup>": vectors(1)}, path)
    with pytest.raises(PriorError, match="b.safetensors: .*a.safetensors holds the word '<cup>'"):
        load_prior(pipeline_dir, additions=Additions((), paths))


def test_a_floyd_takes_no_words(floyd_dir, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"<cup>": vectors(1)}, path)
    with pytest.raises(PriorError, match="x.safetensors is an embedding .* read by a T5"):
        load_prior(floyd_dir, additions=Additions((), [path]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora": "nowhere.safetensors:0.5"}, "^--lora=nowhere.safetensors is no file"),
        ({"lora": "{here}/a.ckpt"}, "^--lora=.*a.ckpt is a pickle"),
        ({"lora": "{here}/a.safetensors:1e999"}, "^--lora=.*the scale 1e999 is too large"),
        ({"embedding": "{here}"}, "^--embedding=.* is no file"),
        ({"embedding": "a.pt"}, "^--embedding=a.pt is a pickle"),
    ],
)
def test_flags_that_name_no_file_are_refused(flags, message, tmp_path):
    given = {name: value.format(here=tmp_path) for name, value in flags.items()}
    with pytest.raises(UserError, match=message):
        find_additions(PriorOptions(**given))


def test_what_is_added_is_part_of_a_runs_digest(pipeline_dir, tmp_path):
    for name in ("a", "b"):
        save_file({"<cup>": vectors(1)}, tmp_path / f"{name}.safetensors")
    plain = prior_digest(PriorOptions(prior=str(pipeline_dir)), pipeline_dir)

    def digest(**given):
        return prior_digest(PriorOptions(prior=str(pipeline_dir), **given), pipeline_dir)

    a, b = (str(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert digest(lora=a) == digest(lora=f"{b}:1") != digest(lora=f"{a}:0.5")
    assert len({plain, digest(lora=a), digest(embedding=a), digest(lora=a, embedding=a)}) == 4
