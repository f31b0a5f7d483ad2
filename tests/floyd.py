"""DeepFloyd IF's first stage: its real configurations, and a tiny pipeline of the same make.

The configurations are those of the models' public files, as far as they shape the networks.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from dreamfusion_jax.diffusion.loading.weights import params_to_torch, write_component
from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel

# Of all three, unet/config.json; encoder_hid_dim_type is absent in the first files.
_UNET: dict[str, Any] = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": 4096,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 6,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "time_embedding_type": "positional",
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "upcast_attention": False,
    "use_linear_projection": False,
}
IF_M = _UNET | {"block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768}
IF_L = _UNET | {"block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1280}
IF_XL = _UNET | {"block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816}
# text_encoder/config.json: T5 1.1 XXL
T5_XXL: dict[str, Any] = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
SHARD_BYTES = 10**9
# scheduler/scheduler_config.json
SCHEDULER: dict[str, Any] = {
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.5,
    "thresholding": True,
    "trained_betas": None,
    "variance_type": "learned_range",
}
TINY_UNET = _UNET | {
    "addition_embed_type_num_heads": 4,
    "attention_head_dim": 8,
    "block_out_channels": [16, 32],
    "cross_attention_dim": 32,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "encoder_hid_dim": 24,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
TINY_T5 = T5_XXL | {
    "d_ff": 40,
    "d_kv": 6,
    "d_model": 24,
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": 160,
}
INDEX = {
    "_class_name": "IFPipeline",
    "_diffusers_version": "0.17.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "watermarker": [None, None],
}


def write_t5_tokenizer(folder: Path) -> None:
    """Writes tokenizer/ with a vocabulary of letters and a few pieces, as transformers saves it."""
    from transformers import T5Tokenizer

    pieces = [*"▁abcdefghijklmnopqrstuvwxyz,.'-", "▁a", "ed", "▁red", "▁blue", "▁view"]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocabulary = marks + [(piece, -8.0 / len(piece)) for piece in pieces]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    T5Tokenizer(vocab=vocabulary, model_max_length=77).save_pretrained(folder)


def write_settings(folder: Path, unet: dict[str, Any], text_encoder: dict[str, Any]) -> None:
    """Writes all of a pipeline's folder but the weights."""
    write_t5_tokenizer(folder / "tokenizer")
    for name, config in (("unet", unet), ("text_encoder", text_encoder)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "DDPMScheduler", **SCHEDULER}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(INDEX))


def draw_params(module: Any, seed: int = 0) -> Any:
    """Draws every tensor of a network anew, at a scale that carries a signal through."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *module.dummy_inputs()))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw(rng, leaf.shape, leaf.shape[:-1], path[-1].key == "scale"),
        shapes["params"],
    )


def draw(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: tuple[int, ...], is_scale: bool
) -> np.ndarray:
    """Draws a tensor; one of several axes with a variance of one by the product of `fan_in`."""
    noise = rng.standard_normal(shape, np.float32)
    return noise / math.prod(fan_in) ** 0.5 if len(shape) > 1 else 0.3 * noise + is_scale


def write_random(folder: Path, unet: dict[str, Any], dtype: Any, seed: int = 0) -> None:
    """Writes a whole pipeline at full size, T5-XXL included, tensor by tensor into shards."""
    write_settings(folder, unet, T5_XXL)
    networks = (
        ("unet", UNet2DConditionModel, unet, "diffusion_pytorch_model"),
        ("text_encoder", T5EncoderModel, T5_XXL, "model"),
    )
    for name, module_class, config, stem in networks:
        write_shards(folder / name, stem, module_class.from_config(config), dtype, seed)


def write_shards(folder: Path, stem: str, module: Any, dtype: Any, seed: int = 0) -> None:
    """Draws a network's tensors one after another into shards, and writes their index."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *module.dummy_inputs()))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes["params"])
    rng, held, shards = np.random.default_rng(seed), {}, []
    specs = params_to_torch(zeros)
    for name, spec in specs.items():
        drawn = draw(rng, spec.shape, spec.shape[1:], name.endswith(".weight"))
        held[name] = drawn.astype(dtype)
        if name == list(specs)[-1] or sum(tensor.nbytes for tensor in held.values()) > SHARD_BYTES:
            shards.append(list(held))
            save_file(held, folder / f"{stem}-{len(shards):05d}.safetensors", {"format": "pt"})
            held = {}
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for i, name in enumerate(names, 1):
        (folder / f"{stem}-{i:05d}.safetensors").rename(folder / name)
    weight_map = {
        tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_tiny(folder: Path) -> Path:
    """Writes a pipeline for images of 8 x 8, which IFPipeline.from_pretrained loads unchanged."""
    write_settings(folder, TINY_UNET, TINY_T5)
    networks = (
        ("unet", UNet2DConditionModel, TINY_UNET),
        ("text_encoder", T5EncoderModel, TINY_T5),
    )
    for name, module_class, config in networks:
        write_component(folder / name, config, draw_params(module_class.from_config(config)))
    return folder
