"""A whole SDXL against diffusers' StableDiffusionXLPipeline: texts, predictions, samples."""

import json
import shutil
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreamfusion_jax.diffusion.loading.model_files import pipeline_digest
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.weights import check_params, params_from_torch
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.sampling import ddim_sample
from dreamfusion_jax.runtime.errors import PriorError
from tests.diffusion.conftest import LENGTH, write_tokenizer
from tests.pipelines import SCHEDULER
from tests.xl import SDXL_UNET

PROMPTS = ["a red chair", "a blue mug, seen from far behind and above, on its own", ""]
UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 16 + 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="session")
def xl_dir(redraw, tmp_path_factory) -> Path:
    """A tiny SDXL of random weights, as diffusers itself saves one."""
    folder = tmp_path_factory.mktemp("xl")
    tokenizer = write_tokenizer(folder / "words")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    common = {
        **ids,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
    }
    second = CLIPTextConfig(**common, hidden_size=24, projection_dim=20, hidden_act="gelu")
    diffusers.StableDiffusionXLPipeline(
        vae=redraw(
            diffusers.AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
                scaling_factor=0.6,
            )
        ),
        text_encoder=redraw(CLIPTextModel(CLIPTextConfig(**common, hidden_size=16))),
        text_encoder_2=redraw(CLIPTextModelWithProjection(second)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=redraw(diffusers.UNet2DConditionModel(**UNET)),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def xl(xl_dir):
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(xl_dir)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def loaded(xl_dir):
    return load_prior(xl_dir)


def test_texts_are_encoded_as_the_pipeline_does(xl, loaded, relative_error):
    tokens, empty, pooled, empty_pooled = xl.encode_prompt(PROMPTS[:2], device="cpu")
    ours = loaded[0].encode_text(PROMPTS)
    assert relative_error(ours.tokens[:2], tokens.numpy()) < 1e-4
    assert relative_error(ours.vector[:2, :20], pooled.numpy()) < 1e-4
    assert not np.any(ours.tokens[2]) and not np.any(ours.vector[2, :20])
    assert not empty.any() and not empty_pooled.any()
    assert ours.vector[:, 20:].tolist() == 3 * [[16, 16, 0, 0, 16, 16]]


def test_an_empty_text_is_encoded_where_the_pipeline_says_so(xl_dir, tmp_path):
    folder = Path(shutil.copytree(xl_dir, tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"force_zeros_for_empty_prompt": False})
    )
    assert np.all(np.any(load_prior(folder)[0].encode_text([""]).tokens, axis=-1))


def test_samples_are_those_of_the_pipeline(xl, loaded, channels_first):
    prior, params = loaded
    noise = np.random.default_rng(0).standard_normal((2, *prior.latent_shape)).astype(np.float32)
    theirs = xl(
        [PROMPTS[0]] * 2,
        num_inference_steps=8,
        guidance_scale=5.0,
        latents=channels_first(noise),
        output_type="np",
        height=16,
        width=16,
    ).images

    @jax.jit
    def draw(params, text, empty):
        return prior.decode(params, ddim_sample(prior, params, text, empty, noise, 8, 5.0))

    empty = prior.encode_text([""])
    ours = draw(params, prior.encode_text([PROMPTS[0]] * 2), empty)
    assert theirs.std() > 0.1, "a saturated image would compare nothing"
    assert np.abs(ours - theirs).mean() < 1e-3
    assert np.abs(draw(params, prior.encode_text(["x"] * 2), empty) - theirs).mean() > 1e-2


def test_the_autoencoder_stays_in_float32(xl_dir):
    _, params = load_prior(xl_dir, "bfloat16", "bfloat16")
    dtypes = {name: {leaf.dtype.name for leaf in jax.tree.leaves(params[name])} for name in params}
    assert dtypes == {"unet": {"bfloat16"}, "vae": {"float32"}}


def test_the_second_tower_is_part_of_the_digest(xl_dir, tmp_path):
    folder = Path(shutil.copytree(xl_dir, tmp_path / "copy"))
    assert pipeline_digest(folder) == pipeline_digest(xl_dir)
    config = json.loads((folder / "text_encoder_2" / "config.json").read_text())
    path = folder / "text_encoder_2" / "config.json"
    path.write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    assert pipeline_digest(folder) != pipeline_digest(xl_dir)


@pytest.mark.parametrize(
    ("file", "changed", "message"),
    [
        ("model_index.json", {"text_encoder_2": [None, None]}, "cross_attention_dim=40 is not the"),
        ("model_index.json", {"text_encoder": [None, None]}, "names no text_encoder"),
        (
            "text_encoder_2/config.json",
            {"hidden_size": 32},
            r"both hidden_size \(16 \+ 32\)",
        ),
        ("text_encoder_2/config.json", {"projection_dim": 16}, "the text encoders give 16"),
        ("text_encoder_2/config.json", {"projection_dim": "wide"}, "projection_dim='wide'"),
        ("unet/config.json", {"addition_time_embed_dim": 64}, "leaves no room"),
        ("unet/config.json", {"addition_embed_type": "text_image"}, "addition_embed_type"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "as many entries"),
        ("unet/config.json", {"transformer_layers_per_block": [1, [1], 1]}, "needs a reverse_"),
        (
            "unet/config.json",
            {"layers_per_block": 8, "transformer_layers_per_block": [9] * 3},
            "64",
        ),
    ],
)
def test_a_malformed_xl_is_told_in_one_sentence(file, changed, message, xl_dir, tmp_path):
    folder = Path(shutil.copytree(xl_dir, tmp_path / "copy"))
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changed))
    with pytest.raises(PriorError, match=message) as error:
        load_prior(folder)
    assert str(folder) in str(error.value)


@pytest.mark.slow
def test_predictions_are_diffusers_at_full_size(
    redraw, arrays, channels_first, channels_last, relative_error
):
    oracle = redraw(diffusers.UNet2DConditionModel(**SDXL_UNET))
    unet = UNet2DConditionModel.from_config(SDXL_UNET)
    params = params_from_torch(arrays(oracle))
    check_params(unet, params, "the test")
    draw = np.random.default_rng(0).standard_normal
    sample, text = draw((1, 32, 32, 4)).astype(np.float32), draw((1, 77, 2048)).astype(np.float32)
    pooled = draw((1, 1280)).astype(np.float32)
    sizes = np.array([[1024, 1024, 0, 0, 1024, 1024]], np.float32)
    given = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
    theirs = oracle(
        channels_first(sample),
        torch.tensor([501]),
        torch.from_numpy(text),
        added_cond_kwargs=given,
    ).sample
    vector = jnp.concatenate([pooled, sizes], axis=-1)
    ours = jax.jit(unet.apply)({"params": params}, sample, np.array([501]), text, vector)
    assert relative_error(ours, channels_last(theirs)) < 1e-4
