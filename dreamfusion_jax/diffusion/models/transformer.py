"""The U-Net's transformer: image tokens attend to each other, then to the text.

diffusers' Transformer2DModel with BasicTransformerBlock ("layer_norm" blocks, GEGLU feed-forward).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.layers import (
    Dtype,
    GroupNorm,
    Linear,
    dot_product_attention,
    layer_norm,
)


class Attention(nn.Module):
    """Multi-head attention without biases on query, key and value.

    `dtype` is that of the products' factors, `out_dtype` that of the output (None: `dtype`).
    """

    heads: int
    dtype: Dtype = jnp.float32
    out_dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps x [B, Q, C] and context [B, K, D] to [B, Q, C]."""
        channels = x.shape[-1]
        dense = lambda name: Linear(channels, use_bias=False, dtype=self.dtype, name=name)  # noqa: E731
        query, key, value = dense("to_q")(x), dense("to_k")(context), dense("to_v")(context)
        out = dot_product_attention(query, key, value, self.heads)
        to_out = Linear(channels, dtype=self.dtype, out_dtype=self.out_dtype, name="to_out_0")
        return to_out(out)


class GEGLU(nn.Module):
    """x -> a gelu(b) with (a, b) = split(linear(x)); the exact GELU, not the tanh form."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        projected = Linear(2 * self.features, dtype=self.dtype, name="proj")(x)
        value, gate = jnp.split(projected, 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back; returns `out_dtype` (None: `dtype`)."""

    dtype: Dtype = jnp.float32
    out_dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h = GEGLU(4 * channels, self.dtype, name="net_0")(x)
        return Linear(channels, dtype=self.dtype, out_dtype=self.out_dtype, name="net_2")(h)


class BasicTransformerBlock(nn.Module):
    """Self-attention (or text, if `only_cross_attention`), cross-attention, feed-forward.

    `dtype` is that of the branches' products; their outputs and sums have the number format of x.
    Self-attention is over all tokens of `joint_views` images, which are consecutive in the batch.
    """

    heads: int
    only_cross_attention: bool
    dtype: Dtype = jnp.float32
    joint_views: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        dtype = x.dtype
        attention = lambda name: Attention(self.heads, self.dtype, dtype, name=name)  # noqa: E731
        h = layer_norm("norm1", self.dtype)(x)
        if self.joint_views > 1 and not self.only_cross_attention:
            # The tokens of a group's views as those of one image.
            h = h.reshape(-1, self.joint_views * h.shape[1], h.shape[2])
            x = x + attention("attn1")(h, h).reshape(x.shape)
        else:
            x = x + attention("attn1")(h, text if self.only_cross_attention else h)
        x = x + attention("attn2")(layer_norm("norm2", self.dtype)(x), text)
        return x + FeedForward(self.dtype, dtype, name="ff")(layer_norm("norm3", self.dtype)(x))


class Transformer2DModel(nn.Module):
    """Pixels to tokens, `layers` transformer blocks, and back, with a residual around all of it.

    Stable Diffusion 1.x projects in and out by 1x1 convolutions, 2.x by linear layers: the same
    numbers, different shapes of kernels. All residual sums stay in the number format of x.
    """

    heads: int
    layers: int
    num_groups: int
    use_linear_projection: bool
    only_cross_attention: bool
    dtype: Dtype = jnp.float32
    joint_views: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """Maps x [B, H, W, C] and text [B, L, D] to [B, H, W, C]."""
        batch, height, width, channels = x.shape

        def projection(h: jax.Array, name: str) -> jax.Array:
            return Linear(
                channels,
                convolution=not self.use_linear_projection,
                dtype=self.dtype,
                out_dtype=x.dtype,
                name=name,
            )(h)

        h = GroupNorm(self.num_groups, 1e-6, self.dtype, name="norm")(x)
        h = projection(h, "proj_in").reshape(batch, height * width, channels)
        for i in range(self.layers):
            h = BasicTransformerBlock(
                self.heads,
                self.only_cross_attention,
                self.dtype,
                self.joint_views,
                name=f"transformer_blocks_{i}",
            )(h, text)
        return x + projection(h.reshape(x.shape), "proj_out")
