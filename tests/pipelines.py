"""Stable Diffusion in its real configurations with random weights, saved as diffusers saves it.

The configurations are those of the models' public files. `write_pipeline` makes the directories
that benchmarks and hand-made checks load where real weights cannot be had.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE, MAX_LENGTH = 49_408, 77

# stable-diffusion-v1-5/stable-diffusion-v1-5: unet/config.json
SD15_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
# stabilityai/stable-diffusion-2-1: unet/config.json
SD21_UNET = SD15_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
# stabilityai/stable-diffusion-2-1-base, of which MVDream is made
SD21_BASE_UNET = SD21_UNET | {"sample_size": 64}
# segmind/tiny-sd: unet/config.json
TINY_SD_UNET = SD15_UNET | {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "layers_per_block": 1,
    "mid_block_type": None,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
}
# vae/config.json of all
VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# text_encoder/config.json: CLIP ViT-L/14's tower of 1.x, OpenCLIP ViT-H/14's of 2.x
VIT_L: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
VIT_H = VIT_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
# openai/clip-vit-base-patch32, -base-patch16, -large-patch14: of config.json, what shapes networks
_CLIP_BASE: dict[str, Any] = {
    "projection_dim": 512,
    "text_config": {
        "eos_token_id": 2,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
    },
}
CLIP_B32 = _CLIP_BASE | {"vision_config": {"patch_size": 32}}
CLIP_B16 = _CLIP_BASE | {"vision_config": {"patch_size": 16}}
CLIP_L14: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": VIT_L | {"eos_token_id": 2},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
# scheduler/scheduler_config.json: what both share; 2.1 predicts the velocity
SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "1.5": {"unet": SD15_UNET, "text": VIT_L, "prediction_type": "epsilon"},
    "2.1": {"unet": SD21_UNET, "text": VIT_H, "prediction_type": "v_prediction"},
    "2.1-base": {"unet": SD21_BASE_UNET, "text": VIT_H, "prediction_type": "epsilon"},
    "tiny-sd": {"unet": TINY_SD_UNET, "text": VIT_L, "prediction_type": "epsilon"},
}


def write_pipeline(folder: Path, model: str, dtype: torch.dtype = torch.float32) -> None:
    """Writes a whole pipeline of random weights, drawn as torch draws them for a new network."""
    parts = MODELS[model]
    torch.manual_seed(0)
    write_clip_tokenizer(folder / "tokenizer")
    text_config = CLIPTextConfig(
        **parts["text"], bos_token_id=49406, eos_token_id=49407, pad_token_id=49407
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel(**parts["unet"]),
        scheduler=DDIMScheduler(**SCHEDULER, prediction_type=parts["prediction_type"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype).save_pretrained(folder)


def write_clip_tokenizer(folder: Path) -> None:
    """The tokenizer/ of Stable Diffusion, from the vocabulary that open-clip-torch carries.

    Raises:
      ModuleNotFoundError: open-clip-torch is not installed (`pip install --no-deps` is enough).
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pip install --no-deps open-clip-torch: its vocabulary is needed")
    packed = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    letters = list(bytes_to_unicode().values())
    merges = lines[1 : VOCABULARY_SIZE - 2 * len(letters) - 2 + 1]
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["".join(merge.split()) for merge in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
