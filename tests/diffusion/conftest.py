"""Torch networks with every tensor redrawn, and a tiny Stable Diffusion saved by diffusers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.priors.prior import Prior
from tests.floyd import write_tiny

torch.set_num_threads(1)
torch.set_grad_enabled(False)

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 12
TEXT_WIDTH = 16


@pytest.fixture(scope="session")
def redraw() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Draws every parameter anew, norms and biases too: fresh ones are all 1 or 0 and hide swaps.

    Matrices keep the scale that carries a signal through: variance 1 / fan_in.
    """

    def redraw_module(module: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                draw = draw / parameter[0].numel() ** 0.5
            elif name.endswith("weight"):
                draw = 1.0 + 0.3 * draw
            else:
                draw = 0.3 * draw
            parameter.copy_(draw)
        return module.eval()

    return redraw_module


@pytest.fixture(scope="session")
def arrays() -> Callable[[torch.nn.Module], dict[str, np.ndarray]]:
    """A module's state dict as arrays."""
    return lambda module: {name: t.numpy() for name, t in module.state_dict().items()}


@pytest.fixture(scope="session")
def channels_first() -> Callable[[np.ndarray], torch.Tensor]:
    """[B, H, W, C] to torch's [B, C, H, W]."""
    return lambda x: torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def channels_last() -> Callable[[torch.Tensor], np.ndarray]:
    """Torch's [B, C, H, W] to [B, H, W, C]."""
    return lambda x: x.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="session")
def relative_error() -> Callable[[np.ndarray, np.ndarray], float]:
    """||a - b|| / ||b||."""
    return lambda a, b: float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


@pytest.fixture(scope="session")
def pipeline_dir(redraw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion of random weights, as diffusers itself saves one."""
    folder = tmp_path_factory.mktemp("pipeline")
    tokenizer = write_tokenizer(folder / "words")
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.6,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=redraw(vae),
        text_encoder=redraw(CLIPTextModel(text_config)),
        tokenizer=tokenizer,
        unet=redraw(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(pipeline_dir: Path) -> StableDiffusionPipeline:
    """The tiny pipeline, as diffusers loads it."""
    return StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None)


@pytest.fixture(scope="module")
def loaded(pipeline_dir: Path) -> tuple[Prior, Any]:
    """The tiny pipeline, as `load_prior` loads it: the prior and its params."""
    return load_prior(pipeline_dir)


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes a minimal CLIP vocabulary: letters, letters at a word's end, a merge, two marks."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "ed</w>", START, END]
    folder.mkdir(parents=True)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\ne d</w>\n")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def floyd_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepFloyd IF of random weights."""
    return write_tiny(tmp_path_factory.mktemp("floyd"))
