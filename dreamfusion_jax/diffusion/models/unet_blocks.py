"""The U-Net's blocks at one resolution: residual blocks, each with or without a transformer.

One class covers diffusers' DownBlock2D and CrossAttnDownBlock2D, another the two up blocks: they
differ only in whether there are transformers, that is in `heads` being None or a number.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.layers import Downsample2D, Dtype, ResnetBlock2D, Upsample2D
from dreamfusion_jax.diffusion.models.transformer import Transformer2DModel


class BlockOptions(NamedTuple):
    """The options that all blocks of one U-Net share, but for the numbers of transformers."""

    num_groups: int
    epsilon: float
    transformer_layers: tuple[int, ...]  # of each layer
    use_linear_projection: bool
    downsample_padding: int
    dtype: Dtype
    act_fn: str = "silu"
    scale_shift: bool = False
    cross_attention_norm: str | None = None
    joint_views: int = 1


class DownBlock2D(nn.Module):
    """`layers` residual blocks (and transformers), then half the resolution, except at the end."""

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
                x = _transformer(self.heads, self.only_cross_attention, self.options, i)(x, text)
            skips.append(x)
        if self.downsample:
            padding, dtype = self.options.downsample_padding, self.options.dtype
            x = Downsample2D(self.features, padding, dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class UpBlock2D(nn.Module):
    """Residual blocks that take in the skips, last first, then the next skip's resolution."""

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
                x = _transformer(self.heads, self.only_cross_attention, self.options, i)(x, text)
        skips = skips[: -self.layers]
        if self.upsample:
            # The skip's size, not twice ours: an odd size was rounded up on the way down.
            height, width = skips[-1].shape[1:3]
            x = Upsample2D(self.features, self.options.dtype, name="upsamplers_0")(x, height, width)
        return x, skips


class UNetMidBlock2DCrossAttn(nn.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    heads: int
    only_cross_attention: bool
    output_scale_factor: float
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, text: jax.Array) -> jax.Array:
        # diffusers passes `only_cross_attention` to the other kind of mid block alone.
        features, scale = x.shape[-1], self.output_scale_factor
        x = resnet(features, self.options, "resnets_0", scale)(x, time)
        x = _transformer(self.heads, False, self.options, 0)(x, text)
        return resnet(features, self.options, "resnets_1", scale)(x, time)


class UNetMidBlock2D(nn.Module):
    """One residual block at the lowest resolution, and no transformer."""

    heads: int
    only_cross_attention: bool
    output_scale_factor: float
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, text: jax.Array) -> jax.Array:
        scale = self.output_scale_factor
        return resnet(x.shape[-1], self.options, "resnets_0", scale)(x, time)


def resnet(
    features: int, options: BlockOptions, name: str, scale: float = 1.0, resample: str = ""
) -> ResnetBlock2D:
    """Makes a residual block of the U-Net with these options."""
    return ResnetBlock2D(
        features,
        options.num_groups,
        options.epsilon,
        scale,
        options.dtype,
        options.act_fn,
        options.scale_shift,
        resample,
        name=name,
    )


def _transformer(
    heads: int, only_cross_attention: bool, options: BlockOptions, place: int
) -> Transformer2DModel:
    return Transformer2DModel(
        heads,
        options.transformer_layers[place],
        options.num_groups,
        options.use_linear_projection,
        only_cross_attention,
        options.dtype,
        options.joint_views,
        name=f"attentions_{place}",
    )
