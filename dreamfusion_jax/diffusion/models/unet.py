"""The conditional U-Net of Stable Diffusion 1.x and 2.x (diffusers' UNet2DConditionModel)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.options import (
    module_defaults,
    module_options,
    require_members,
)
from dreamfusion_jax.diffusion.models.layers import (
    Dtype,
    GroupNorm,
    Linear,
    conv3x3,
    timestep_embedding,
)
from dreamfusion_jax.diffusion.models.unet_blocks import (
    BlockOptions,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from dreamfusion_jax.runtime.errors import PriorError

NAME = "UNet2DConditionModel"
# Options of diffusers with the only value implemented here, which is also the default there.
REQUIRED: dict[str, Any] = {
    "act_fn": "silu",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_only_cross_attention": None,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
# Attention scores are float32 here, so upcast_attention is always on.
IGNORED = ("dropout", "addition_embed_type_num_heads", "upcast_attention")
MAX_TRANSFORMERS = 64  # eight times Stable Diffusion's
# Of the residual stream, whatever `dtype` the blocks' products have: half precision would cost
# accuracy there (tests/benchmarks/prior_precision.py), and float16 would overflow there first.
RESIDUAL_DTYPE = jnp.float32
PER_BLOCK = ("attention_head_dim", "only_cross_attention")


class UNet2DConditionModel(nn.Module):
    """Predicts the noise (or velocity) in a latent, given the timestep and the text.

    The attributes are diffusers' own; `attention_head_dim` means the NUMBER of heads, as it does in
    the configs of Stable Diffusion. `dtype` is that of the factors of all products and of the
    prediction; the residual sums, which the norms read, are in RESIDUAL_DTYPE.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32
    ) -> UNet2DConditionModel:
        """Builds the network of a diffusers config.json; raises PriorError for others."""
        options = module_options(
            NAME, config, module_defaults(cls), REQUIRED, IGNORED, per_block=PER_BLOCK
        )
        unet = cls(**options, dtype=dtype)
        require_members(
            NAME, "down_block_types", unet.down_block_types, {"DownBlock2D", "CrossAttnDownBlock2D"}
        )
        require_members(
            NAME, "up_block_types", unet.up_block_types, {"UpBlock2D", "CrossAttnUpBlock2D"}
        )
        lists = (unet.down_block_types, unet.up_block_types, unet._heads, unet._only_cross)
        if any(len(values) != len(unet.block_out_channels) for values in lists):
            raise PriorError(
                f"{NAME} config: down_block_types, up_block_types, attention_head_dim and "
                "only_cross_attention must have as many entries as block_out_channels."
            )
        layers = unet.layers_per_block * unet.transformer_layers_per_block
        if layers * len(unet.block_out_channels) > MAX_TRANSFORMERS:
            raise PriorError(
                f"{NAME} config: layers_per_block={unet.layers_per_block} of "
                f"transformer_layers_per_block={unet.transformer_layers_per_block} are not "
                f"supported, only {MAX_TRANSFORMERS} transformers on the way down are."
            )
        return unet

    def dummy_inputs(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns arguments small enough to initialize or to trace shapes with."""
        side = 2 ** (len(self.block_out_channels) - 1)
        return (
            jnp.zeros((1, side, side, self.in_channels)),
            jnp.zeros((1,), jnp.int32),
            jnp.zeros((1, 1, self.cross_attention_dim)),
        )

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        vector: jax.Array | None = None,
    ) -> jax.Array:
        """Maps sample [B, h, w, c], index [B] and text [B, L, D] to [B, h, w, out_channels].

        A vector [B, V], such as a camera, is embedded and added to the time's embedding.
        """
        if self.center_input_sample:
            sample = 2.0 * sample - 1.0
        channels, blocks = self.block_out_channels, self._block_options
        text = text.astype(self.dtype)
        waves = timestep_embedding(timestep, channels[0], self.flip_sin_to_cos, self.freq_shift)
        time = TimestepEmbedding(4 * channels[0], self.dtype, name="time_embedding")(waves)
        if vector is not None:
            embedding = TimestepEmbedding(4 * channels[0], self.dtype, name="class_embedding")
            time = time + embedding(vector)

        h = conv3x3(channels[0], "conv_in", self.dtype)(sample).astype(RESIDUAL_DTYPE)
        skips = [h]
        for i, block_type in enumerate(self.down_block_types):
            h, new_skips = DownBlock2D(
                features=channels[i],
                layers=self.layers_per_block,
                heads=self._heads[i] if block_type == "CrossAttnDownBlock2D" else None,
                only_cross_attention=self._only_cross[i],
                downsample=i < len(channels) - 1,
                options=blocks,
                name=f"down_blocks_{i}",
            )(h, time, text)
            skips += new_skips
        h = UNetMidBlock2DCrossAttn(
            self._heads[-1], self.mid_block_scale_factor, blocks, name="mid_block"
        )(h, time, text)
        for i, block_type in enumerate(self.up_block_types):
            mirror = len(channels) - 1 - i
            h, skips = UpBlock2D(
                features=channels[mirror],
                layers=self.layers_per_block + 1,
                heads=self._heads[mirror] if block_type == "CrossAttnUpBlock2D" else None,
                only_cross_attention=self._only_cross[mirror],
                upsample=mirror > 0,
                options=blocks,
                name=f"up_blocks_{i}",
            )(h, skips, time, text)

        h = GroupNorm(self.norm_num_groups, self.norm_eps, h.dtype, name="conv_norm_out")(h)
        return conv3x3(self.out_channels, "conv_out", self.dtype)(nn.silu(h))

    @property
    def _block_options(self) -> BlockOptions:
        return BlockOptions(
            self.norm_num_groups,
            self.norm_eps,
            self.transformer_layers_per_block,
            self.use_linear_projection,
            self.downsample_padding,
            self.dtype,
        )

    @property
    def _heads(self) -> tuple[int, ...]:
        return _per_block(self.attention_head_dim, len(self.block_out_channels))

    @property
    def _only_cross(self) -> tuple[bool, ...]:
        return _per_block(self.only_cross_attention, len(self.block_out_channels))


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear: from sinusoids of the timestep, or a vector, to what resnets add."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, waves: jax.Array) -> jax.Array:
        h = Linear(self.features, dtype=self.dtype, name="linear_1")(waves)
        return Linear(self.features, dtype=self.dtype, name="linear_2")(nn.silu(h))


def _per_block(value: Any, count: int) -> tuple:
    return value if isinstance(value, tuple) else (value,) * count
