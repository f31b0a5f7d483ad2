"""Group normalization for GPUs, which reads its input once for both moments.

With mu, s mean and standard deviation of a group, x' = (x - mu) / s and y = a x' + b in a channel,
the gradient of x is (a g - m(a g) - x' m(a g x')) / s, where g is that of y and m the mean over the
group. So the backward pass, too, reads once for its sums and once more for its result, where the
derivative of each operation by itself reads several times.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

# What the backward pass needs: x, mean and 1 / s of each channel's group, the scale.
_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, dtype: Any
) -> jax.Array:
    """Normalizes x [B, ..., C] over positions and C / groups channels, in float32.

    Args:
      scale, bias: [C].
      dtype: of the output.
    """
    return _forward(x, scale, bias, groups, epsilon, dtype)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, dtype: Any
) -> tuple[jax.Array, _Residuals]:
    mean, inverse_std = _moments(x, groups, epsilon)
    y = (x.astype(jnp.float32) - mean) * (inverse_std * scale) + bias
    return y.astype(dtype), (x, mean, inverse_std, scale)


def _backward(
    groups: int, epsilon: float, dtype: Any, residuals: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse_std, scale = residuals
    g = cotangent.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse_std
    by_bias, by_scale = _position_means(g), _position_means(g * normal)
    first, second = (_over_group(scale * sums, groups) for sums in (by_bias, by_scale))
    by_x = (scale * g - first - normal * second) * inverse_std
    count = x.size / x.shape[0] / x.shape[-1]
    by_scale, by_bias = (
        count * jnp.sum(sums.reshape(-1, x.shape[-1]), 0) for sums in (by_scale, by_bias)
    )
    return by_x.astype(x.dtype), by_scale, by_bias


def _moments(x: jax.Array, groups: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns mean and 1 / sqrt(variance + epsilon), each [B, 1..., C], of each channel's group.

    E[d^2] - E[d]^2 would lose its digits where the mean is large; d is the distance from the mean
    of the first row, which is near.
    """
    shift = _over_group(_position_means(x[:, :1].astype(jnp.float32)), groups)
    d = x.astype(jnp.float32) - shift
    first, second = (_over_group(_position_means(y), groups) for y in (d, d * d))
    variance = jnp.maximum(second - first**2, 0.0)
    return shift + first, jax.lax.rsqrt(variance + epsilon)


def _position_means(x: jax.Array) -> jax.Array:
    """Returns the mean of each channel of x [B, ..., C]: [B, 1..., C]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)


def _over_group(x: jax.Array, groups: int) -> jax.Array:
    """Returns in each channel of x [B, 1..., C] the mean of its group."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = jnp.broadcast_to(jnp.mean(grouped, axis=-1, keepdims=True), grouped.shape)
    return mean.reshape(x.shape)


group_norm.defvjp(_forward, _backward)
