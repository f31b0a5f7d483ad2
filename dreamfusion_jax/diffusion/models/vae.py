"""The autoencoder of Stable Diffusion: images to latents and back (diffusers' AutoencoderKL)."""

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
    Downsample2D,
    Dtype,
    GroupNorm,
    Linear,
    ResnetBlock2D,
    Upsample2D,
    conv3x3,
    dot_product_attention,
)
from dreamfusion_jax.runtime.device import memory_bytes, platform
from dreamfusion_jax.runtime.errors import PriorError

NAME = "AutoencoderKL"
EPSILON = 1e-6  # of every norm in here
REMAT_PIXELS = 256**2  # encoder blocks from this size on are rematerialized for the gradient,
# unless what they would keep, so many maps of an image of its first block's width, is small beside
# a GPU's memory.
KEPT_MAPS = 24
KEPT_SHARE = 1 / 8
REQUIRED: dict[str, Any] = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
IGNORED = ("force_upcast",)


class AutoencoderKL(nn.Module):
    """Encodes RGB in [-1, 1] to the moments of a latent, and decodes latents.

    `scaling_factor` is not applied in here: a latent z of the diffusion model is scaling_factor
    times a latent of this network.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> AutoencoderKL:
        """Builds the network of a diffusers config.json; raises PriorError for others."""
        options = module_options(NAME, config, module_defaults(cls), REQUIRED, IGNORED)
        vae = cls(**options, dtype=dtype)
        require_members(NAME, "down_block_types", vae.down_block_types, {"DownEncoderBlock2D"})
        require_members(NAME, "up_block_types", vae.up_block_types, {"UpDecoderBlock2D"})
        if any(
            len(types) != len(vae.block_out_channels)
            for types in (vae.down_block_types, vae.up_block_types)
        ):
            raise PriorError(
                f"{NAME} config: down_block_types and up_block_types must have as many entries as "
                "block_out_channels."
            )
        return vae

    @property
    def downscale(self) -> int:
        """Returns the width of a latent pixel in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)

    def dummy_inputs(self) -> tuple[jax.Array]:
        """Returns arguments small enough to initialize or to trace shapes with."""
        return (jnp.zeros((1, self.downscale, self.downscale, self.in_channels)),)

    def setup(self) -> None:
        shared = (
            self.block_out_channels,
            self.layers_per_block,
            self.norm_num_groups,
            self.mid_block_add_attention,
        )
        self.encoder = Encoder(2 * self.latent_channels, *shared, self.dtype)
        self.decoder = Decoder(self.out_channels, *shared, self.dtype)
        channels = self.latent_channels
        if self.use_quant_conv:
            self.quant_conv = Linear(2 * channels, convolution=True, dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = Linear(channels, convolution=True, dtype=self.dtype)

    def encode(self, rgb: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps rgb [B, H, W, 3] in [-1, 1] to the latent's mean and log variance [B, h, w, c]."""
        moments = self.encoder(rgb)
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latent: jax.Array) -> jax.Array:
        """Maps latent [B, h, w, c] to rgb [B, H, W, 3], about [-1, 1] but not clipped."""
        if self.use_post_quant_conv:
            latent = self.post_quant_conv(latent)
        return self.decoder(latent).astype(jnp.float32)

    def __call__(self, rgb: jax.Array) -> jax.Array:
        """Reconstructs rgb from the latent's mean; uses every parameter, for `init`."""
        return self.decode(self.encode(rgb)[0])


class Encoder(nn.Module):
    """Image to the (un-quantized) moments of the latent, at 1 / 2^(blocks - 1) of the size."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers: int
    num_groups: int
    attention: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = conv3x3(self.block_out_channels[0], "conv_in", self.dtype)(x)
        last, kept = len(self.block_out_channels) - 1, _can_keep(h)
        for i, features in enumerate(self.block_out_channels):
            # The step's gradient passes here: large feature maps are recomputed, not stored.
            large = h.shape[1] * h.shape[2] >= REMAT_PIXELS and not kept
            h = (nn.remat(DownEncoderBlock2D) if large else DownEncoderBlock2D)(
                features,
                self.layers,
                self.num_groups,
                i < last,
                self.dtype,
                name=f"down_blocks_{i}",
            )(h)
        h = UNetMidBlock2D(self.num_groups, self.attention, self.dtype, name="mid_block")(h)
        h = GroupNorm(self.num_groups, EPSILON, self.dtype, name="conv_norm_out")(h)
        return conv3x3(self.out_channels, "conv_out", self.dtype)(nn.silu(h))


class Decoder(nn.Module):
    """Latent to image; one residual block more at every resolution than the encoder has."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers: int
    num_groups: int
    attention: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        h = conv3x3(self.block_out_channels[-1], "conv_in", self.dtype)(latent)
        h = UNetMidBlock2D(self.num_groups, self.attention, self.dtype, name="mid_block")(h)
        last = len(self.block_out_channels) - 1
        for i, features in enumerate(reversed(self.block_out_channels)):
            h = UpDecoderBlock2D(
                features,
                self.layers + 1,
                self.num_groups,
                i < last,
                self.dtype,
                name=f"up_blocks_{i}",
            )(h)
        h = GroupNorm(self.num_groups, EPSILON, self.dtype, name="conv_norm_out")(h)
        return conv3x3(self.out_channels, "conv_out", self.dtype)(nn.silu(h))


class DownEncoderBlock2D(nn.Module):
    """Residual blocks, then half the resolution."""

    features: int
    layers: int
    num_groups: int
    downsample: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = _resnet(self.features, self.num_groups, self.dtype, f"resnets_{i}")(x)
        if self.downsample:
            x = Downsample2D(self.features, 0, self.dtype, name="downsamplers_0")(x)
        return x


class UpDecoderBlock2D(nn.Module):
    """Residual blocks, then double the resolution."""

    features: int
    layers: int
    num_groups: int
    upsample: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = _resnet(self.features, self.num_groups, self.dtype, f"resnets_{i}")(x)
        if self.upsample:
            height, width = x.shape[1:3]
            x = Upsample2D(self.features, self.dtype, name="upsamplers_0")(x, 2 * height, 2 * width)
        return x


class UNetMidBlock2D(nn.Module):
    """Residual block, self-attention (if any), residual block."""

    num_groups: int
    attention: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        x = _resnet(features, self.num_groups, self.dtype, "resnets_0")(x)
        if self.attention:
            x = AttentionBlock(self.num_groups, self.dtype, name="attentions_0")(x)
        return _resnet(features, self.num_groups, self.dtype, "resnets_1")(x)


class AttentionBlock(nn.Module):
    """One head over all pixels; every projection has a bias, unlike in the U-Net."""

    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        dense = lambda name: Linear(channels, dtype=self.dtype, name=name)  # noqa: E731
        h = GroupNorm(self.num_groups, EPSILON, self.dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        h = dot_product_attention(dense("to_q")(h), dense("to_k")(h), dense("to_v")(h), heads=1)
        return x + dense("to_out_0")(h).reshape(x.shape)


def _can_keep(first: jax.Array) -> bool:
    """Returns whether a GPU's memory holds what the encoder of a map [B, H, W, C] computes.

    A TPU's would as well, but its programs were measured with recomputation.
    """
    return (
        platform() == "gpu"
        and KEPT_MAPS * first.size * first.dtype.itemsize <= KEPT_SHARE * memory_bytes()
    )


def _resnet(features: int, num_groups: int, dtype: Dtype, name: str) -> ResnetBlock2D:
    return ResnetBlock2D(features, num_groups, EPSILON, dtype=dtype, name=name)
