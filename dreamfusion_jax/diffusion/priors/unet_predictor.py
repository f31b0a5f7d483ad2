"""A U-Net as a prior's `predict`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.priors.prior import Condition, PriorParams
from dreamfusion_jax.diffusion.schedule import Schedule, time_index
from dreamfusion_jax.runtime.device import platform
from dreamfusion_jax.runtime.errors import PriorError

MAX_SAMPLE_SIZE = 1024  # side of the latent


def unet_predictor(
    unet: UNet2DConditionModel, schedule: Schedule
) -> Callable[[PriorParams, jax.Array, jax.Array, Condition], jax.Array]:
    """Returns the prediction of `unet`, whose params are in {"unet": ..., "lora": ...}.

    Low-rank updates ("lora") are optional, see diffusion/lora.py; where a condition has a vector,
    the params must embed it ("class_embedding").
    """

    def predict(
        params: PriorParams, z_t: jax.Array, t: jax.Array, condition: Condition
    ) -> jax.Array:
        index = time_index(schedule, t)
        variables = {"params": params["unet"], "lora": params.get("lora", {})}
        with float32_products(unet.dtype):
            prediction = unet.apply(variables, z_t, index, condition.tokens, condition.vector)
        return prediction.astype(jnp.float32)

    return predict


def float32_products(dtype: Any, precision: str = "high") -> AbstractContextManager[None]:
    """Keeps products of a float32 network from being rounded to bfloat16's 8 bits.

    A TPU rounds the factors so by default. At "high" it adds up three products of bfloat16 parts,
    which leaves 1/500 of the error (tests/benchmarks/prior_precision.py) at three times the cost;
    an NVIDIA GPU then uses TF32's 11 bits. "highest" is full float32, six products on a TPU, for
    what runs once. Networks in half precision, and programs for a CPU, are left as they are.
    """
    if jnp.dtype(dtype) != jnp.float32 or platform() == "cpu":
        return nullcontext()
    return jax.default_matmul_precision(precision)


def sample_side(unet: UNet2DConditionModel) -> int:
    """Returns the side of the square latent that the network denoises.

    Raises:
      PriorError: it is not one number.
    """
    if type(unet.sample_size) is not int or not 1 <= unet.sample_size <= MAX_SAMPLE_SIZE:
        raise PriorError(
            f"UNet2DConditionModel config: sample_size={unet.sample_size!r} is not supported, "
            f"only one number (a square) up to {MAX_SAMPLE_SIZE} is."
        )
    return unet.sample_size
