"""A whole DeepFloyd IF against diffusers' IFPipeline: its texts, its samples, its T5 in pieces."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import IFPipeline
from diffusers.schedulers import scheduling_ddpm
from safetensors.numpy import load_file, save_file

from dreamfusion_jax.diffusion import sampling
from dreamfusion_jax.diffusion.loading.model_files import text_encoder_digest
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.runtime.errors import PriorError
from tests.floyd import TINY_T5, draw_params, write_t5_tokenizer

PROMPTS = ["a Red chair, ", "a blue mug, seen from far behind and above", ""]
T5_FILE = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def floyd(floyd_dir):
    """The tiny pipeline, as diffusers loads it."""
    pipeline = IFPipeline.from_pretrained(floyd_dir, safety_checker=None, watermarker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def loaded(floyd_dir):
    """The tiny pipeline, as `load_prior` loads it: the prior and its params."""
    return load_prior(floyd_dir)


@pytest.fixture(scope="module")
def sample(loaded):
    """The sampler of the tiny pipeline, compiled once."""
    return sampling.make_sampler(loaded[0])


def test_texts_are_encoded_as_the_pipeline_does(floyd, loaded, relative_error):
    theirs = floyd.encode_prompt(PROMPTS, False)[0].numpy()
    ours = loaded[0].encode_text(PROMPTS).tokens
    assert ours.shape == theirs.shape == (3, 77, 24)
    for row in range(3):
        assert relative_error(ours[row], theirs[row]) < 1e-4
    assert relative_error(ours[1], theirs[0]) > 1e-2
    chex.assert_trees_all_equal(loaded[0].encode_text(PROMPTS[1:2]).tokens[0], ours[1])


def test_the_prediction_leaves_out_the_variance(
    floyd, loaded, channels_first, channels_last, relative_error
):
    prior, params = loaded
    assert (prior.image_size, prior.latent_shape, params.keys()) == (8, (8, 8, 3), {"unet"})
    z_t = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    text = prior.encode_text(PROMPTS[:2])
    tokens = torch.from_numpy(np.array(text.tokens))
    theirs = channels_last(floyd.unet(channels_first(z_t), torch.tensor([100, 900]), tokens).sample)
    inputs = params, z_t, jnp.array([100, 900]) / 999, text
    assert relative_error(jax.jit(prior.predict)(*inputs), theirs[..., :3]) < 1e-4


@pytest.mark.parametrize("scale", [4.0, 20.0])
def test_samples_are_those_of_if_pipeline(
    scale, floyd, loaded, sample, channels_first, monkeypatch
):
    prior, params = loaded
    keys, steps = sampling.sample_keys(seed=0, samples=2), 8
    draw = lambda keys: channels_first(np.asarray(sampling.draw_noise(prior, keys)))  # noqa: E731
    fold = jax.vmap(jax.random.fold_in, (0, None))
    indices, _ = sampling.ddim_indices(prior.schedule, steps)
    floyd.scheduler.set_timesteps(steps)
    assert indices.tolist() == floyd.scheduler.timesteps.tolist()
    noises = iter([draw(fold(keys, int(index))) for index in indices])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(noises))
    monkeypatch.setattr(floyd, "prepare_intermediate_images", lambda *_: draw(keys))
    theirs = floyd(
        ["a red chair"] * 2,
        negative_prompt=["blue"] * 2,
        num_inference_steps=steps,
        guidance_scale=scale,
        output_type="np",
        clean_caption=False,
    ).images

    def ours(prompt):
        text, negative = prior.encode_text([prompt] * 2), prior.encode_text(["blue"])
        return sample(params, text, negative, keys, steps, (scale, 0.0), eta=1.0)

    assert theirs.std() > 0.1, "a saturated image would compare nothing"
    assert np.abs(ours("a red chair") - theirs).mean() < 1e-3
    assert np.abs(ours("x") - theirs).mean() > 1e-2


def test_text_shards_and_a_tied_matrix_load_to_the_same(floyd_dir, loaded, tmp_path):
    folder = Path(shutil.copytree(floyd_dir, tmp_path / "sharded"))
    tensors = load_file(folder / T5_FILE)
    (folder / T5_FILE).unlink()
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    names = sorted(tensors)
    index = {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.safetensors"
        part = {name: tensors[name] for name in names[number - 1 :: 2]}
        save_file(part, folder / "text_encoder" / shard)
        index |= dict.fromkeys(part, shard)
    path = folder / "text_encoder" / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    ours = load_prior(folder)[0].encode_text(PROMPTS)
    chex.assert_trees_all_equal(ours, loaded[0].encode_text(PROMPTS))


def test_the_text_digest_is_of_what_reads_texts_alone(floyd_dir, tmp_path):
    folder = Path(shutil.copytree(floyd_dir, tmp_path / "other"))
    digest = text_encoder_digest(floyd_dir)
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    assert text_encoder_digest(folder) == digest
    tensors = load_file(folder / T5_FILE)
    tensors["shared.weight"] = 2 * tensors["shared.weight"]
    save_file(tensors, folder / T5_FILE)
    assert text_encoder_digest(folder) != digest


# Peak memory of a process that reads a prompt with a T5 of one layer, then with one of twelve.
ONE_LAYER_AT_A_TIME = """
import resource, sys
import jax
from dreamfusion_jax.diffusion.loading.t5_encoder import load_t5_encoder
from dreamfusion_jax.diffusion.loading.weights import build_module
from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel
jax.config.update("jax_compilation_cache_dir", None)
for folder in sys.argv[1:]:
    model = build_module(folder + "/text_encoder", T5EncoderModel)
    load_t5_encoder(folder, model)(["a red chair"]).tokens.block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_of_t5_one_layer_at_a_time_is_in_memory(tmp_path):
    from dreamfusion_jax.diffusion.loading.weights import write_component
    from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel

    wide = TINY_T5 | {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 4096}
    layer = 4 * (4 * 512 * 512 + 3 * 512 * 4096)  # bytes
    folders = []
    for layers in (2, 12):
        folder = tmp_path / str(layers)
        config = wide | {"num_layers": layers}
        params = draw_params(T5EncoderModel.from_config(config))
        write_component(folder / "text_encoder", config, params)
        write_t5_tokenizer(folder / "tokenizer")
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", ONE_LAYER_AT_A_TIME, *folders], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    print(f"{(many - few) / layer:.2f} layers more for ten layers more")
    assert many - few < 1.5 * layer


def test_a_sentencepiece_vocabulary_needs_two_packages(floyd_dir, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(floyd_dir, tmp_path / "spiece"))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"\n\x0e\n\x05<pad>")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr(
        "dreamfusion_jax.diffusion.loading.t5_encoder._is_installed", lambda name: False
    )
    with pytest.raises(PriorError, match="pip install sentencepiece protobuf"):
        load_prior(folder)
