"""Loads the two text towers of SDXL."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.text_encoder import Tower, load_tower
from dreamfusion_jax.diffusion.priors.prior import Condition, EncodeText


def load_xl_encoder(towers: Sequence[Tower], image_size: int, empty_is_zero: bool) -> EncodeText:
    """Loads both tokenizers and the params of both towers.

    Args:
      image_size: what the network is told of the images' size; nothing is cropped.
      empty_is_zero: whether an empty prompt is all zeros, and not what the towers make of it.

    Returns:
      prompts -> as StableDiffusionXLPipeline.encode_prompt, tokens [B, L, D1 + D2]: both towers'
      hidden states before their last layers; vector [B, P + 6]: the second one's projection of the
      text's end, and the sizes.
    """
    read = [load_tower(tower) for tower in towers]
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
