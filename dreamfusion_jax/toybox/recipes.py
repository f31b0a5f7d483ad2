"""The toybox's networks, as diffusers / transformers configs, and how long each is trained."""

from __future__ import annotations

from typing import Any, NamedTuple

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 16, 32, 64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 16,
    "norm_num_groups": 2,
    "sample_size": 128,
    "scaling_factor": 1.0,  # measured after training: 1 / the latents' standard deviation
}

TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": VAE["latent_channels"],
    "out_channels": VAE["latent_channels"],
    # No attention at 16 x 16: it would cost as much as all the rest.
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [64, 128, 192],
    "layers_per_block": 1,
    "attention_head_dim": 4,  # the number of heads, as in Stable Diffusion's configs
    "cross_attention_dim": TEXT_ENCODER["hidden_size"],
    # Four channels a group at full resolution: of two, a norm erases the background's gray.
    "norm_num_groups": 16,
    "act_fn": "silu",
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,  # what StableDiffusionPipeline sets in any case
    "timestep_spacing": "leading",
}

JUDGE: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 128,
    "logit_scale_init_value": 2.6592,
    "text_config": {
        "model_type": "clip_text_model",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "image_size": 64,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
    },
}

AZIMUTH: dict[str, Any] = {
    "_class_name": "AzimuthClassifier",
    "widths": [24, 48, 96],
    "image_size": 64,
}

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class Stage(NamedTuple):
    """How one network is trained: Muon, linear warm-up, a constant rate, linear decay to zero.

    Attributes:
      steps: to the end of the decay, which takes the last `decay_share` of them.
      preview_every: steps between two images of what the network does.
    """

    steps: int
    batch_size: int
    learning_rate: float
    decay_share: float = 0.2
    preview_every: int = 400


IMAGE_SIZE = 128
CROP_SIZE = 64  # of the autoencoder's training; it is convolutional
SHARD_SIZE = 1_040  # images, 40 of each kind
SHARDS = 60
FIRST_SHARDS = 24  # are rendered before any training
STEPS_PER_SHARD = 200  # of the U-Net's training, until another shard is rendered
SPHERES = 1_024
STAGES: dict[str, Stage] = {
    "vae": Stage(4_800, 8, 2e-3, preview_every=600),
    "diffusion": Stage(62_500, 32, 1e-3, preview_every=2_000),
    "judge": Stage(5_000, 64, 2e-3),
    "azimuth": Stage(2_000, 64, 2e-3),
}
