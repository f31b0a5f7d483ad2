"""The blocks of DeepFloyd IF's U-Net: residual blocks and one attention over text and pixels.

They resample by residual blocks, and have no transformers: an attention's keys and values are those
of the text, then those of the pixels, and no feed-forward network follows. One class covers
diffusers' SimpleCrossAttnDownBlock2D and ResnetDownsampleBlock2D, another the two up blocks: they
differ only in whether there is attention, that is in `heads` being None or a number.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.layers import GroupNorm, Linear, dot_product_attention
from dreamfusion_jax.diffusion.models.unet_blocks import BlockOptions, resnet

EPSILON = 1e-5  # of an attention's norms
TEXT_GROUPS = 32  # of the norm of its text


class SimpleCrossAttnDownBlock2D(nn.Module):
    """`layers` residual blocks (and attentions), then half the resolution, except at the end."""

    features: int
    layers: int
    heads: int | None
    only_cross_attention: bool
    downsample: bool
    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, text: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the output and every feature map on the way, for the up blocks."""
        skips = []
        for i in range(self.layers):
            x = resnet(self.features, self.options, f"resnets_{i}")(x, time)
            if self.heads is not None:
                x = _attention(self.heads, self.only_cross_attention, self.options, i)(x, text)
            skips.append(x)
        if self.downsample:
            x = resnet(self.features, self.options, "downsamplers_0", resample="down")(x, time)
            skips.append(x)
        return x, skips


class SimpleCrossAttnUpBlock2D(nn.Module):
    """Residual blocks that take in the skips, last first, then twice the resolution."""

    features: int
    layers: int
    heads: int | None
    only_cross_attention: bool
    upsample: bool
    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list[jax.Array], time: jax.Array, text: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the output and the skips that are left."""
        for i in range(self.layers):
            x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = resnet(self.features, self.options, f"resnets_{i}")(x, time)
            if self.heads is not None:
                x = _attention(self.heads, self.only_cross_attention, self.options, i)(x, text)
        if self.upsample:
            x = resnet(self.features, self.options, "upsamplers_0", resample="up")(x, time)
        return x, skips[: -self.layers]


class UNetMidBlock2DSimpleCrossAttn(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    heads: int
    only_cross_attention: bool
    output_scale_factor: float
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, text: jax.Array) -> jax.Array:
        features, scale = x.shape[-1], self.output_scale_factor
        x = resnet(features, self.options, "resnets_0", scale)(x, time)
        x = _attention(self.heads, self.only_cross_attention, self.options, 0)(x, text)
        return resnet(features, self.options, "resnets_1", scale)(x, time)


class AddedKVAttention(nn.Module):
    """Attention of the pixels to the text and, unless `only_cross_attention`, to each other.

    diffusers' Attention with AttnAddedKVProcessor: every projection has a bias; a residual.
    """

    heads: int
    only_cross_attention: bool
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """Maps x [B, H, W, C] and text [B, L, D] to [B, H, W, C]."""
        batch, height, width, channels = x.shape
        dtype = self.options.dtype
        dense = lambda name: Linear(channels, dtype=dtype, name=name)  # noqa: E731
        if self.options.cross_attention_norm:
            text = GroupNorm(TEXT_GROUPS, EPSILON, dtype, name="norm_cross")(text)
        h = GroupNorm(self.options.num_groups, EPSILON, dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        query, key, value = dense("to_q")(h), dense("add_k_proj")(text), dense("add_v_proj")(text)
        if not self.only_cross_attention:
            key = jnp.concatenate([key, dense("to_k")(h)], axis=1)
            value = jnp.concatenate([value, dense("to_v")(h)], axis=1)
        out = dot_product_attention(query, key, value, self.heads)
        to_out = Linear(channels, dtype=dtype, out_dtype=x.dtype, name="to_out_0")
        return x + to_out(out).reshape(x.shape)


def _attention(
    heads: int, only_cross_attention: bool, options: BlockOptions, place: int
) -> AddedKVAttention:
    return AddedKVAttention(heads, only_cross_attention, options, name=f"attentions_{place}")
