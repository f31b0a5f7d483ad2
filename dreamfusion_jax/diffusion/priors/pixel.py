"""Priors on the image itself: pipelines without an autoencoder."""

from __future__ import annotations

import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.priors.prior import EncodeText, Prior, resize_bilinear
from dreamfusion_jax.diffusion.priors.unet_predictor import sample_side, unet_predictor
from dreamfusion_jax.diffusion.schedule import Schedule


def pixel_prior(unet: UNet2DConditionModel, schedule: Schedule, encode_text: EncodeText) -> Prior:
    """Makes a prior on the image itself, in [-1, 1]; its params are {"unet": params}."""
    side = sample_side(unet)
    return Prior(
        side,
        (side, side, unet.in_channels),
        schedule,
        encode_text,
        lambda params, rgb, key: 2.0 * resize_bilinear(rgb, side) - 1.0,
        lambda params, z: jnp.clip(0.5 * z + 0.5, 0.0, 1.0),
        unet_predictor(unet, schedule),
    )
