"""SDXL base in its real configuration, and a folder of random weights in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamfusion_jax.diffusion.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from tests.floyd import write_shards
from tests.pipelines import SCHEDULER, VAE, VIT_L, write_clip_tokenizer

# stabilityai/stable-diffusion-xl-base-1.0: unet/config.json
SDXL_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
# text_encoder_2/config.json: OpenCLIP ViT-bigG/14
BIG_G = VIT_L | {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
XL_VAE = VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
NETWORKS: tuple[tuple[str, Any, dict[str, Any], str], ...] = (
    ("unet", UNet2DConditionModel, SDXL_UNET, "diffusion_pytorch_model"),
    ("vae", AutoencoderKL, XL_VAE, "diffusion_pytorch_model"),
    ("text_encoder", CLIPTextModel, VIT_L, "model"),
    ("text_encoder_2", CLIPTextModelWithProjection, BIG_G, "model"),
)
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_random(folder: Path, dtype: Any) -> None:
    """Writes a whole pipeline at full size, tensor by tensor."""
    for name in ("tokenizer", "tokenizer_2"):
        write_clip_tokenizer(folder / name)
    for name, module_class, config, stem in NETWORKS:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        write_shards(folder / name, stem, module_class.from_config(config), dtype)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
