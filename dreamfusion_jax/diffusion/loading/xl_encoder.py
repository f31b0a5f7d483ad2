"""Loads the two text towers of SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.loading.weights import load_params
from dreamfusion_jax.diffusion.models.clip import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    TextStates,
)
from dreamfusion_jax.diffusion.priors.prior import Condition, EncodeText
from dreamfusion_jax.diffusion.priors.unet_predictor import float32_products

FOLDERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


def load_xl_encoder(
    path: Path,
    towers: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    image_size: int,
    empty_is_zero: bool,
    variant: str = "",
) -> EncodeText:
    """Loads both tokenizers and the params of both towers.

    Args:
      image_size: what the network is told of the images' size; nothing is cropped.
      empty_is_zero: whether an empty prompt is all zeros, and not what the towers make of it.

    Returns:
      prompts -> as StableDiffusionXLPipeline.encode_prompt, tokens [B, L, D1 + D2]: both towers'
      hidden states before their last layers; vector [B, P + 6]: the second one's projection of the
      text's end, and the sizes.
    """
    read = [
        _load_tower(path, *folders, tower, variant)
        for folders, tower in zip(FOLDERS, towers, strict=True)
    ]
    sizes = jnp.asarray([image_size, image_size, 0, 0, image_size, image_size], jnp.float32)

    def encode_text(prompts: Sequence[str]) -> Condition:
        first, second = (tower(prompts) for tower in read)
        tokens = jnp.concatenate([first.penultimate, second.penultimate], axis=-1)
        kept = jnp.asarray([bool(prompt) or not empty_is_zero for prompt in prompts])
        tokens = jnp.where(kept[:, None, None], tokens, 0.0)
        pooled = jnp.where(kept[:, None], second.pooled, 0.0)
        told = jnp.broadcast_to(sizes, (len(prompts), len(sizes)))
        return Condition(tokens, jnp.concatenate([pooled, told], axis=-1))

    return encode_text


def _load_tower(path: Path, tokenizer: str, folder: str, tower: Any, variant: str) -> Any:
    """Returns prompts -> TextStates of one tower, in float32."""
    text = tower.text_config if isinstance(tower, CLIPTextModelWithProjection) else tower
    params = load_params(tower, path / folder, tower.dtype, variant)
    tokenize = load_tokenizer(path / tokenizer, text.max_position_embeddings, text.vocab_size)

    @jax.jit
    def apply(params: Any, ids: jax.Array) -> TextStates:
        with float32_products(tower.dtype, "highest"):
            return tower.apply({"params": params}, ids)

    return lambda prompts: apply(params, tokenize(prompts))
