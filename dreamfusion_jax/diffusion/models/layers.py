"""Layers that the U-Net and the autoencoder share. Channels last: [B, H, W, C].

Submodules carry the names of diffusers' torch modules with `.N` written `_N`, so that params map
by name alone (see loading/weights.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.group_norm import group_norm
from dreamfusion_jax.runtime.device import cuda_capability, platform

Dtype = Any
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}
PAD_ONE = ((1, 1), (1, 1))
SCORES_BYTES = 2**28  # attention scores in memory at once, without a fused kernel


def conv3x3(features: int, name: str, dtype: Dtype) -> nn.Conv:
    """Makes a 3x3 convolution that keeps the size."""
    return nn.Conv(features, (3, 3), padding=PAD_ONE, dtype=dtype, name=name)


class Linear(nn.Module):
    """A linear layer on the last axis, as a product of two plain matrices.

    linen's Dense keeps the leading axes apart, and its 1x1 convolution stays a convolution: on a
    CPU the first takes twice and the second four times as long, forward and backward.

    `dtype` is that of the product's factors; its sums come out in `out_dtype` (None: `dtype`).
    Where the collection "lora" holds two factors for it (diffusion/lora.py), their product is added
    to the kernel, by way of the activations, so that neither a sum nor a second kernel is stored.
    """

    features: int
    use_bias: bool = True
    convolution: bool = False  # whether the kernel is stored in the shape of a 1x1 convolution's
    dtype: Dtype = jnp.float32
    out_dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., C] to [..., features]."""
        out_dtype = self.out_dtype or self.dtype
        channels = x.shape[-1]
        shape = (1, 1) * self.convolution + (channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        flat = x.reshape(-1, channels).astype(self.dtype)
        kernel = kernel.reshape(channels, self.features).astype(self.dtype)
        y = jnp.matmul(flat, kernel, preferred_element_type=out_dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(self.dtype) for name in "ab")
            y = y + jnp.matmul(jnp.matmul(flat, a), b, preferred_element_type=out_dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(out_dtype)
        return y.reshape(*x.shape[:-1], self.features)


class GroupNorm(nn.Module):
    """Group normalization over the positions and C / num_groups channels of [B, ..., C].

    Mean and variance are taken in float32 and in two passes: the one-pass E[x^2] - E[x]^2 of
    linen's default loses every digit where the mean is large (off by 6e-2 at mean 300, std 1).
    On a GPU, where reading is what takes the time, one pass is enough: see group_norm.py.
    """

    num_groups: int
    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if platform() == "gpu":
            return group_norm(x, scale, bias, self.num_groups, self.epsilon, self.dtype)
        x32 = x.astype(jnp.float32)
        centered = x32 - self._group_mean(x32)
        inverse_std = jax.lax.rsqrt(self._group_mean(centered**2) + self.epsilon)
        return (centered * (inverse_std * scale) + bias).astype(self.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Returns [B, 1..., C], in each channel the mean of its group in x [B, ..., C]."""
        # Positions first: that sum runs along whole vectors of channels.
        per_channel = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        groups = per_channel.reshape(x.shape[0], self.num_groups, -1)
        mean = jnp.broadcast_to(jnp.mean(groups, axis=-1, keepdims=True), groups.shape)
        return mean.reshape((x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],))


def layer_norm(name: str, dtype: Dtype, epsilon: float = 1e-5) -> nn.LayerNorm:
    """Makes a LayerNorm whose variance is computed in two passes, as in torch."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class ResnetBlock2D(nn.Module):
    """norm, silu, conv, + time, norm, silu, conv, + shortcut (diffusers' ResnetBlock2D).

    `dtype` is that of the products' factors; norms, activations and the residual sum stay in the
    number format of x.

    Attributes:
      scale_shift: the time scales and shifts what the second norm returns, instead of being added
        before it.
      resample: "down" or "up": after the first activation both paths are halved by averages, or
        doubled by nearest neighbors; "": neither.
    """

    features: int
    num_groups: int
    epsilon: float
    output_scale_factor: float = 1.0
    dtype: Dtype = jnp.float32
    act_fn: str = "silu"
    scale_shift: bool = False
    resample: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        """Maps x [B, H, W, C] and time [B, E], or None, to [B, H, W, features], resampled."""
        dtype, act = x.dtype, ACTIVATIONS[self.act_fn]
        norm1 = GroupNorm(self.num_groups, self.epsilon, dtype, name="norm1")
        h = act(norm1(x))
        if self.resample:
            x, h = _resampled(x, self.resample), _resampled(h, self.resample)
        h = conv3x3(self.features, "conv1", self.dtype)(h)
        if time is not None and not self.scale_shift:
            project = Linear(self.features, dtype=self.dtype, name="time_emb_proj")
            h = h + project(act(time))[:, None, None, :]
        norm2 = GroupNorm(self.num_groups, self.epsilon, dtype, name="norm2")
        h = norm2(h)
        if time is not None and self.scale_shift:
            project = Linear(
                2 * self.features, dtype=self.dtype, out_dtype=dtype, name="time_emb_proj"
            )
            scale, shift = jnp.split(project(act(time))[:, None, None, :], 2, axis=-1)
            h = h * (1.0 + scale) + shift
        h = conv3x3(self.features, "conv2", self.dtype)(act(h))
        if x.shape[-1] != self.features:
            x = Linear(
                self.features,
                convolution=True,
                dtype=self.dtype,
                out_dtype=dtype,
                name="conv_shortcut",
            )(x)
        h = x + h.astype(dtype)
        return h if self.output_scale_factor == 1.0 else h / self.output_scale_factor


def _resampled(x: jax.Array, resample: str) -> jax.Array:
    """Halves x [B, H, W, C] by averages of 2 x 2, or doubles it by nearest neighbors."""
    batch, height, width, channels = x.shape
    if resample == "up":
        return resize_nearest(x, 2 * height, 2 * width)
    rows, columns = height // 2, width // 2
    blocks = x[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, channels)
    return jnp.mean(blocks, axis=(2, 4))


class Downsample2D(nn.Module):
    """A convolution of stride 2, in `dtype`; its output is in the number format of its input.

    Padding 0 means one row and column of zeros at the far edges.
    """

    features: int
    padding: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((self.padding, max(self.padding, 1)),) * 2
        conv = nn.Conv(
            self.features, (3, 3), strides=(2, 2), padding=padding, dtype=self.dtype, name="conv"
        )
        return conv(x).astype(x.dtype)


class Upsample2D(nn.Module):
    """Nearest neighbor to (height, width), then a convolution in `dtype`; returns x's dtype."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        resized = resize_nearest(x.astype(self.dtype), height, width)
        return conv3x3(self.features, "conv", self.dtype)(resized).astype(x.dtype)


def resize_nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes as torch's "nearest": output i reads input floor(i * size_in / size_out)."""
    batch, h, w, channels = x.shape
    if (height, width) == (2 * h, 2 * w):
        # Doubling as a broadcast: its derivative is a plain sum, not a scatter.
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, h, 2, w, 2, channels))
        return x.reshape(batch, height, width, channels)
    rows = jnp.arange(height) * h // height
    columns = jnp.arange(width) * w // width
    return x[:, rows][:, :, columns]


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, causal: bool = False
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(d)) v of each head; scores and softmax are in float32.

    query [B, Q, heads * d], key and value [B, K, heads * d] -> [B, Q, heads * d].
    """
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)  # noqa: E731
    q, k, v = split(query), split(key), split(value)
    if _has_fused_kernel(q):
        odd = q.shape[1] % 2 or k.shape[1] % 2
        attend = _fused_odd if odd and not causal else functools.partial(_fused, causal=causal)
        return attend(q, k, v).reshape(query.shape)
    # Heads beside the batch before the products: XLA on CPU is four times slower at products whose
    # batch axes are not in front.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    q = q / math.sqrt(q.shape[-1])
    pieces = 1 if causal else -(-4 * math.prod(q.shape[:3]) * k.shape[2] // SCORES_BYTES)
    out = jnp.concatenate(
        [_attend(piece, k, v, causal) for piece in jnp.array_split(q, pieces, axis=2)], axis=2
    )
    return out.transpose(0, 2, 1, 3).reshape(query.shape)


def _fused(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False) -> jax.Array:
    """Attends by cuDNN's fused kernel: q [B, Q, heads, d], k and v [B, K, heads, d] -> as q."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")


@jax.custom_vjp
def _fused_odd(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attends as `_fused`; for a derivative, which cuDNN only has of even Q and K, pads them."""
    return _fused(q, k, v)


def _fused_padded(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attends with one more query or key where their numbers are odd, which counts for nothing."""
    even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))  # noqa: E731
    out = jax.nn.dot_product_attention(
        even(q),
        even(k),
        even(v),
        query_seq_lengths=jnp.full(len(q), q.shape[1], jnp.int32),
        key_value_seq_lengths=jnp.full(len(k), k.shape[1], jnp.int32),
        implementation="cudnn",
    )
    return out[:, : q.shape[1]]


_fused_odd.defvjp(lambda *qkv: jax.vjp(_fused_padded, *qkv), lambda pull, out: pull(out))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Attends with scaled queries: q [B, heads, Q, d], k and v [B, heads, K, d] -> as q."""
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if causal:
        allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(allowed, scores, -jnp.inf)
    return jnp.matmul(jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _has_fused_kernel(query: jax.Array) -> bool:
    """Returns whether cuDNN's flash attention, which stores no scores, takes [B, Q, heads, d].

    It needs half precision, an NVIDIA GPU from Ampere on, and d a multiple of 8 up to 128.
    """
    width = query.shape[-1]
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return half and width % 8 == 0 and width <= 128 and cuda_capability() >= 8.0


def timestep_embedding(
    index: jax.Array, dim: int, flip_sin_to_cos: bool, freq_shift: float
) -> jax.Array:
    """Returns sinusoids [B, dim] of the timestep index [B], in float32."""
    half = dim // 2
    exponent = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angle = index.astype(jnp.float32)[:, None] * jnp.exp(exponent)
    waves = (jnp.sin(angle), jnp.cos(angle))
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)
