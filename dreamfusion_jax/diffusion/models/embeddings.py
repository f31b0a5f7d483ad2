"""What is added up to the embedding that every residual block of a U-Net reads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.layers import (
    ACTIVATIONS,
    Dtype,
    Linear,
    dot_product_attention,
    layer_norm,
)


class TimestepEmbedding(nn.Module):
    """Two linear layers from the sinusoids of the timestep to the embedding that resnets add."""

    features: int
    dtype: Dtype = jnp.float32
    act_fn: str = "silu"

    @nn.compact
    def __call__(self, waves: jax.Array) -> jax.Array:
        h = Linear(self.features, dtype=self.dtype, name="linear_1")(waves)
        return Linear(self.features, dtype=self.dtype, name="linear_2")(ACTIVATIONS[self.act_fn](h))


class TextTimeEmbedding(nn.Module):
    """The text as one vector [B, features], to be added to the timestep's embedding."""

    features: int
    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        h = layer_norm("norm1", self.dtype)(text)
        h = AttentionPooling(self.heads, self.dtype, name="pool")(h)
        h = Linear(self.features, dtype=self.dtype, name="proj")(h)
        return layer_norm("norm2", self.dtype)(h)


class AttentionPooling(nn.Module):
    """Tokens [B, L, D] to what their mean, as a token in front of them, attends to [B, D]."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        width = tokens.shape[-1]
        dense = lambda name: Linear(width, dtype=self.dtype, name=name)  # noqa: E731
        position = self.param("positional_embedding", nn.initializers.normal(0.02), (1, width))
        mean = jnp.mean(tokens, axis=1, keepdims=True) + position.astype(tokens.dtype)
        tokens = jnp.concatenate([mean, tokens], axis=1)
        query, key, value = dense("q_proj")(mean), dense("k_proj")(tokens), dense("v_proj")(tokens)
        return dot_product_attention(query, key, value, self.heads)[:, 0]
