"""One-file checkpoints load to the params of the same model in diffusers' folder, bit for bit."""

import shutil
from pathlib import Path

import chex
import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreamfusion_jax.diffusion.loading.lora_files import Lora
from dreamfusion_jax.diffusion.loading.model_files import pipeline_digest
from dreamfusion_jax.diffusion.loading.parts import Additions
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.runtime.errors import PriorError
from tests.diffusion.conftest import LENGTH, write_tokenizer
from tests.pipelines import SCHEDULER
from tests.single_files import clip_to_open_clip, under, unet_to_ldm, vae_to_ldm

WIDTH = 64
UNET = {
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": WIDTH,
}
UNETS = {
    "1": UNET | {"attention_head_dim": 8, "sample_size": 64},
    "2": UNET | {"attention_head_dim": [1, 2], "use_linear_projection": True, "sample_size": 96},
    "xl": UNET
    | {
        "block_out_channels": [64, 64, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 1, 2],
        "use_linear_projection": True,
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + WIDTH,
        "sample_size": 128,
    },
}
FILE = "model.safetensors"


def write_pair(folder: Path, kind: str, redraw) -> Path:
    """Writes a tiny model as a folder (`folder`/pipeline) and as one file beside a tokenizer."""
    words = write_tokenizer(folder / "tokenizer")
    common = {
        "vocab_size": len(words),
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "hidden_size": WIDTH,
        "max_position_embeddings": LENGTH,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "projection_dim": WIDTH,
    }
    unet = redraw(diffusers.UNet2DConditionModel(**UNETS[kind]))
    vae = redraw(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=0.13025 if kind == "xl" else 0.18215,
        )
    )
    open_clip = CLIPTextConfig(**common, hidden_act="gelu")
    parts = {"vae": vae, "unet": unet, "tokenizer": words}
    scheduler = diffusers.DDIMScheduler(
        **SCHEDULER, prediction_type="v_prediction" if kind == "2" else "epsilon"
    )
    tensors = under("model.diffusion_model.", unet_to_ldm(arrays(unet), unet.config))
    tensors |= under("first_stage_model.", vae_to_ldm(arrays(vae), 2))
    tensors |= {"betas": np.zeros(4), "model_ema.decay": np.zeros((), np.float32)}
    first = redraw(CLIPTextModel(open_clip if kind == "2" else CLIPTextConfig(**common)))
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in arrays(first).items()}
    padded = write_tokenizer(folder / "padded")
    padded.pad_token = "a"  # the first of all, with which OpenCLIP pads
    if kind == "xl":
        second = redraw(CLIPTextModelWithProjection(open_clip))
        tensors |= under("conditioner.embedders.0.transformer.", clip)
        theirs = clip_to_open_clip(arrays(second)) | {"logit_scale": np.zeros(())}
        tensors |= under("conditioner.embedders.1.model.", theirs)
        parts |= {"text_encoder": first, "text_encoder_2": second, "tokenizer_2": padded}
        diffusers.StableDiffusionXLPipeline(**parts, scheduler=scheduler).save_pretrained(
            folder / "pipeline"
        )
    else:
        if kind == "2":  # The last layer and the projection are not used.
            theirs = clip_to_open_clip(clip)
            last = {n.replace("blocks.1", "blocks.2"): t for n, t in theirs.items() if "s.1." in n}
            more = {
                "text_projection": np.ones((WIDTH, WIDTH), np.float32),
                "logit_scale": np.ones(1),
            }
            tensors |= under("cond_stage_model.model.", theirs | last | more)
            parts["tokenizer"] = padded
        else:
            tensors |= under("cond_stage_model.transformer.", clip)
        diffusers.StableDiffusionPipeline(
            **parts,
            text_encoder=first,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder / "pipeline")
    save_file(tensors, folder / FILE)
    return folder


def arrays(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module", params=list(UNETS))
def pair(request, redraw, tmp_path_factory):
    """The kind, and the folder of both of its forms."""
    folder = tmp_path_factory.mktemp("pair")
    return request.param, write_pair(folder, request.param, redraw)


@pytest.fixture(scope="module")
def first_pair(redraw, tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("first"), "1", redraw)


def test_a_file_loads_to_the_params_of_the_folder(pair):
    kind, folder = pair
    prior, params = load_prior(folder / FILE)
    other, expected = load_prior(folder / "pipeline")
    chex.assert_trees_all_equal(params, expected)
    assert prior.latent_shape == other.latent_shape and prior.image_size == other.image_size
    assert prior.schedule[1:] == other.schedule[1:]
    np.testing.assert_array_equal(prior.schedule.alphas_cumprod, other.schedule.alphas_cumprod)
    prompts = ["red couch", ""]  # without the letter that fills up a text
    chex.assert_trees_all_equal(prior.encode_text(prompts), other.encode_text(prompts))


def test_the_file_is_one_that_diffusers_converts_to_the_folder(pair):
    kind, folder = pair
    held = {name: torch.from_numpy(tensor) for name, tensor in load_file(folder / FILE).items()}
    config = UNETS[kind] | {"class_embed_type": None}
    unet = single_file_utils.convert_ldm_unet_checkpoint(held, config)
    vae = single_file_utils.convert_ldm_vae_checkpoint(
        held, {"down_block_types": [0, 0], "up_block_types": [0, 0]}
    )
    for name, converted in (("unet", unet), ("vae", vae)):
        saved = load_file(folder / "pipeline" / name / "diffusion_pytorch_model.safetensors")
        assert converted.keys() == saved.keys()
        assert all(np.array_equal(converted[key].numpy(), saved[key]) for key in saved)


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ({"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}, "v_prediction"),
        ({}, "epsilon"),
    ],
)
def test_a_file_may_say_what_its_network_predicts(added, expected, first_pair, tmp_path):
    folder = Path(shutil.copytree(first_pair, tmp_path / "copy"))
    save_file(load_file(folder / FILE) | added, folder / FILE)
    schedule = load_prior(folder / FILE)[0].schedule
    assert schedule.prediction_type == expected
    assert (schedule.alphas_cumprod[-1] == 0) == bool(added)
    assert load_prior(folder / FILE, prediction_type="sample")[0].schedule[1] == "sample"


def test_the_base_of_2_predicts_noise_on_smaller_latents(redraw, tmp_path):
    folder = write_pair(tmp_path, "2", redraw)
    prior = load_prior(folder / FILE, prediction_type="epsilon")[0]
    assert prior.latent_shape == (64, 64, 4) and prior.schedule.prediction_type == "epsilon"
    held = load_file(folder / FILE) | {"global_step": np.array(875_000, np.int64)}
    save_file(held, folder / FILE)
    assert load_prior(folder / FILE)[0].latent_shape == (64, 64, 4)


def test_a_lora_in_ldm_names_is_merged(first_pair, tmp_path):
    stem = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0"
    pair = np.full((2, 64), 0.1, np.float32), np.full((64, 2), 0.2, np.float32)
    path = tmp_path / "a.safetensors"
    save_file({f"{stem}.lora_down.weight": pair[0], f"{stem}.lora_up.weight": pair[1]}, path)
    added = Additions([Lora(path, 0.5)])
    _, params = load_prior(first_pair / FILE, additions=added)
    _, plain = load_prior(first_pair / FILE)
    kernels = [
        p["unet"]["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_out_0"]
        for p in (params, plain)
    ]
    difference = kernels[0]["kernel"] - kernels[1]["kernel"]
    np.testing.assert_allclose(difference, 0.5 * (pair[1] @ pair[0]).T, atol=1e-6)


def test_the_files_digest_is_the_priors(first_pair, tmp_path):
    shutil.copy(first_pair / FILE, tmp_path / "renamed.safetensors")
    assert pipeline_digest(tmp_path / "renamed.safetensors") == pipeline_digest(first_pair / FILE)


def dropped(prefix):
    return lambda held: {n: t for n, t in held.items() if not n.startswith(prefix)}


TEXT_WEIGHT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
UNET_WEIGHT = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
REFUSED = {
    "no U-Net": (dropped("model.diffusion_model."), "holds no U-Net under the names of LDM"),
    "no autoencoder": (dropped("first_stage_model."), "holds no autoencoder"),
    "no text encoder": (dropped("cond_stage_model."), "holds no text encoder"),
    "a refiner": (
        lambda held: {"conditioner.embedders.0.model.text_projection": np.ones((2, 2))} | held,
        "is SDXL's refiner",
    ),
    "a missing tensor": (
        dropped("model.diffusion_model.out.2.bias"),
        "do not fit UNet2DConditionModel; missing: conv_out/bias",
    ),
    "a missing first tensor": (
        dropped("model.diffusion_model.input_blocks.0.0.weight"),
        "is no checkpoint of a kind that can be read",
    ),
    "a surplus tensor": (
        lambda held: held | {"model.diffusion_model.stranger.bias": np.ones(2, np.float32)},
        "do not fit UNet2DConditionModel; surplus: .*stranger",
    ),
    "blocks of no layers": (
        dropped("model.diffusion_model.input_blocks.1.0"),
        "no residual blocks",
    ),
    "for inpainting": (
        lambda held: (
            held
            | {"model.diffusion_model.input_blocks.0.0.weight": np.ones((64, 9, 3, 3), np.float32)}
        ),
        "in_channels=9 is not supported",
    ),
    "a flat weight": (
        lambda held: held | {UNET_WEIGHT: np.ones(64, np.float32)},
        "do not fit|no checkpoint",
    ),
    "another text": (
        lambda held: held | {TEXT_WEIGHT: np.ones((64, 32), np.float32)},
        "cross_attention_dim=32 is not|do not fit",
    ),
    "integers": (
        lambda held: held | {"model.diffusion_model.out.2.bias": np.ones(4, np.int32)},
        "as I32, only",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_file_is_told_in_one_sentence(case, first_pair, tmp_path):
    change, message = REFUSED[case]
    shutil.copytree(first_pair / "tokenizer", tmp_path / "tokenizer")
    save_file(change(load_file(first_pair / FILE)), tmp_path / FILE)
    with pytest.raises(PriorError, match=message) as error:
        load_prior(tmp_path / FILE)
    assert str(tmp_path / FILE) in str(error.value)


def test_a_torn_file_and_one_without_words_are_refused(first_pair, tmp_path, monkeypatch):
    (tmp_path / FILE).write_bytes((first_pair / FILE).read_bytes()[:5000])
    with pytest.raises(PriorError, match=f"{FILE} is not a whole safetensors file"):
        load_prior(tmp_path / FILE)
    shutil.copy(first_pair / FILE, tmp_path / FILE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(PriorError, match="holds no vocabulary.* put vocab.json"):
        load_prior(tmp_path / FILE)
