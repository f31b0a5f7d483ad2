"""T5's encoder in transformers' layout (Raffel et al., 2020): tokens to their last hidden states.

Version 1.1 is what DeepFloyd IF and others read texts with: gated GELU, RMSNorm, no biases, no
1 / sqrt(d) in the attention, and positions only as a bias of the scores, by buckets of the distance
between two tokens, which the first layer holds for all.

The network is applied whole, or layer by layer, so that a machine need not hold all of them at once
(loading/t5_encoder.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.loading.options import module_defaults, require_kind, require_members
from dreamfusion_jax.diffusion.models.layers import Dtype, Linear
from dreamfusion_jax.runtime.errors import PriorError

NAME = "T5EncoderModel"
# Published T5s say "gated-gelu" and mean the tanh form, as transformers does.
FEED_FORWARDS = {"relu": nn.relu, "gated-gelu": nn.gelu}


class T5Options(NamedTuple):
    """The options that all layers share."""

    d_kv: int
    d_ff: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    feed_forward_proj: str
    layer_norm_epsilon: float
    dtype: Dtype


class T5EncoderModel(nn.Module):
    """The encoder alone. The attributes are transformers' own."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    layer_norm_epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> T5EncoderModel:
        """Builds the network of a transformers config.json, whose other options it ignores."""
        known = module_defaults(cls)
        options = {key: config[key] for key in known if config.get(key) is not None}
        for key, value in options.items():
            require_kind(NAME, key, value, known[key])
        model = cls(**options, dtype=dtype)
        require_members(NAME, "feed_forward_proj", [model.feed_forward_proj], set(FEED_FORWARDS))
        if model.relative_attention_num_buckets < 4 or model.num_layers < 1:
            raise PriorError(
                f"{NAME} config: relative_attention_num_buckets="
                f"{model.relative_attention_num_buckets} with num_layers={model.num_layers} is not "
                "supported, only 4 buckets and 1 layer or more are."
            )
        return model

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states."""
        return self.d_model

    @property
    def layer_options(self) -> T5Options:
        """The options that all layers share."""
        return T5Options(*(getattr(self, name) for name in T5Options._fields))

    def dummy_inputs(self) -> tuple[jax.Array, jax.Array]:
        """Returns arguments small enough to initialize or to trace shapes with."""
        return jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps ids [B, L] and mask [B, L], true at tokens, to hidden states [B, L, d_model]."""
        tokens = nn.Embed(self.vocab_size, self.d_model, dtype=self.dtype, name="shared")
        return T5Stack(self.num_layers, self.layer_options, name="encoder")(tokens(ids), mask)


class T5Stack(nn.Module):
    """The layers and the norm behind them."""

    num_layers: int
    options: T5Options

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        bias = None
        for i in range(self.num_layers):
            h, bias = T5Block(self.options, i == 0, name=f"block_{i}")(h, mask, bias)
        return rms_norm(self.options, "final_layer_norm")(h)


class T5Block(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm and beside a residual."""

    options: T5Options
    has_relative_attention_bias: bool

    @nn.compact
    def __call__(
        self, h: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Maps h [B, L, D] to the next; returns the first layer's bias [heads, L, L] for all."""
        attention = T5LayerSelfAttention(
            self.options, self.has_relative_attention_bias, name="layer_0"
        )
        h, bias = attention(h, mask, bias)
        return T5LayerFF(self.options, name="layer_1")(h), bias


class T5LayerSelfAttention(nn.Module):
    """Norm, attention, residual."""

    options: T5Options
    has_relative_attention_bias: bool

    @nn.compact
    def __call__(
        self, h: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        attention = T5Attention(
            self.options, self.has_relative_attention_bias, name="SelfAttention"
        )
        out, bias = attention(rms_norm(self.options, "layer_norm")(h), mask, bias)
        return h + out, bias


class T5Attention(nn.Module):
    """Attention without scaling or biases of its own; scores and softmax are in float32."""

    options: T5Options
    has_relative_attention_bias: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        options = self.options
        batch, length, width = x.shape

        def heads(name: str) -> jax.Array:
            wide = linear(options, options.num_heads * options.d_kv, name)(x)
            return wide.reshape(batch, length, options.num_heads, options.d_kv).swapaxes(1, 2)

        query, key, value = heads("q"), heads("k"), heads("v")
        if self.has_relative_attention_bias:
            table = nn.Embed(
                options.relative_attention_num_buckets,
                options.num_heads,
                name="relative_attention_bias",
            )
            bias = table(relative_buckets(options, length)).transpose(2, 0, 1)
        assert bias is not None
        scores = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None, None, :], scores + bias, -jnp.inf)
        out = jnp.matmul(jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)
        out = out.swapaxes(1, 2).reshape(batch, length, -1)
        return linear(options, width, "o")(out), bias


class T5LayerFF(nn.Module):
    """Norm, feed-forward network, residual."""

    options: T5Options

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        x = rms_norm(self.options, "layer_norm")(h)
        return h + T5DenseActDense(self.options, name="DenseReluDense")(x)


class T5DenseActDense(nn.Module):
    """Two linear layers; where gated, the first is the product of an activated one and a plain."""

    options: T5Options

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options, act = self.options, FEED_FORWARDS[self.options.feed_forward_proj]
        dense = lambda name: linear(options, options.d_ff, name)(x)  # noqa: E731
        if options.feed_forward_proj.startswith("gated"):
            h = act(dense("wi_0")) * dense("wi_1")
        else:
            h = act(dense("wi"))
        return linear(options, x.shape[-1], "wo")(h)


def linear(options: T5Options, features: int, name: str) -> Linear:
    """Makes a linear layer without a bias."""
    return Linear(features, use_bias=False, dtype=options.dtype, name=name)


def rms_norm(options: T5Options, name: str | None) -> nn.RMSNorm:
    """Makes the norm, whose mean square is in float32."""
    return nn.RMSNorm(epsilon=options.layer_norm_epsilon, dtype=options.dtype, name=name)


def relative_buckets(options: T5Options, length: int) -> np.ndarray:
    """Returns the bucket [L, L] of the distance from each token (row) to each other (column).

    Half of the buckets are for tokens behind and half for those ahead. Of each half, the first half
    holds one distance each, the others ever wider ranges up to the largest distance.
    """
    half = options.relative_attention_num_buckets // 2
    exact = half // 2
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    size = np.abs(distance)
    # In float32, as transformers: a distance at an edge must fall on the same side.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    span = np.float32(math.log(options.relative_attention_max_distance / exact))
    wide = exact + (ratio / span * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(size < exact, size, np.minimum(wide, half - 1))
    return (bucket + half * (distance > 0)).astype(np.int32)
