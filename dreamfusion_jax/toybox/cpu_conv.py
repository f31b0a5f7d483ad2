"""Convolutions whose backward pass suits a CPU.

XLA's CPU code computes the gradient of a convolution's kernel as a convolution with a window of the
size of the image, at a tenth of the arithmetic speed of the forward pass. Here it is a product of
matrices for each image, small enough to stay in the cache.
"""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.layers import PAD_ONE


def fast_on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which networks are traced; on other devices it changes nothing."""
    if jax.default_backend() != "cpu":
        return contextlib.nullcontext()
    return nn.intercept_methods(_intercept)


def _intercept(
    call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    """Replaces 3 x 3 convolutions of stride 1, padded to the same size."""
    module = context.module
    if not isinstance(module, nn.Conv) or context.method_name != "__call__":
        return call(*args, **kwargs)
    if module.is_initializing() or module.strides not in (1, None, (1, 1)):
        return call(*args, **kwargs)
    if tuple(module.kernel_size) != (3, 3) or module.padding != PAD_ONE:
        return call(*args, **kwargs)
    params = module.variables["params"]
    return _convolve(args[0], params["kernel"]) + params["bias"]


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x [N, H, W, C] with a kernel [3, 3, C, D], padded to the same size."""
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    height, width, channels = x.shape[1:]

    def add_image(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        padded = jnp.pad(image[0], ((1, 1), (1, 1), (0, 0)))
        shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        columns = jnp.concatenate(shifted, axis=-1).reshape(height * width, 9 * channels)
        return total + columns.T @ image[1].reshape(height * width, -1), None

    start = jnp.zeros((9 * channels, gradient.shape[-1]))
    for_kernel, _ = jax.lax.scan(add_image, start, (x, gradient))
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    return _convolve(gradient, mirrored), for_kernel.reshape(kernel.shape)


_convolve.defvjp(_forward, _backward)
