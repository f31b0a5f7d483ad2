"""A text-to-image pipeline small enough for tests: random weights, pixels instead of latents."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dreamfusion_jax.diffusion.loading.weights import write_component
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.toybox import tokenizer

# LLVM's optimizations take half of a test's time and gain nothing at sizes this small; XLA's own
# stay. Programs that tests start inherit this. Flags that are set outside have the last word.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

TEXT_WIDTH = 16
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "block_out_channels": [16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 2,
}
TEXT_ENCODER = {
    "model_type": "clip_text_model",
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}


def pytest_collection_finish() -> None:
    """Frees the collection of garbage from half a million objects that imports made to stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that run the very same program compile it once, and nobody's own cache is touched."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    compilation_cache.reset_cache()  # It may have been found to be off while tests were collected.


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers-layout folder of a pixel-space prior for pictures of 8 x 8."""
    return write_prior(tmp_path_factory.mktemp("tiny_prior"), UNET)


def write_prior(folder: Path, unet: dict[str, Any]) -> Path:
    """Writes a pixel-space prior of random weights with a U-Net's config; returns its folder."""
    rng = np.random.default_rng(0)
    tokenizer.write(folder / "tokenizer")
    text_encoder = {**TEXT_ENCODER, **tokenizer.sizes(folder / "tokenizer")}
    for name, module_class, config in (
        ("unet", UNet2DConditionModel, unet),
        ("text_encoder", CLIPTextModel, text_encoder),
    ):
        module = module_class.from_config(config)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *module.dummy_inputs())["params"]
        params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.1, leaf.shape), shapes)
        write_component(folder / name, config, params)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
