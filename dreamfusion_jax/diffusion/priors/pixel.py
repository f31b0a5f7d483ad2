"""Priors on the image itself: pipelines without an autoencoder."""

from __future__ import annotations

import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.priors.prior import (
    EncodeText,
    PredictVariance,
    Prior,
    resize_bilinear,
)
from dreamfusion_jax.diffusion.priors.unet_predictor import sample_side, unet_predictor
from dreamfusion_jax.diffusion.schedule import Schedule


def pixel_prior(unet: UNet2DConditionModel, schedule: Schedule, encode_text: EncodeText) -> Prior:
    """Makes a prior on the image itself, in [-1, 1]; its params are {"unet": params}.

    Where the network returns twice as many channels as it takes, the second half says something of
    the variance, which only samplers read.
    """
    side, channels = sample_side(unet), unet.in_channels
    predict = whole = unet_predictor(unet, schedule)
    predict_variance: PredictVariance | None = None
    if unet.out_channels == 2 * channels:
        predict = lambda *inputs: whole(*inputs)[..., :channels]  # noqa: E731
        predict_variance = lambda *inputs: tuple(jnp.split(whole(*inputs), 2, -1))  # noqa: E731
    return Prior(
        side,
        (side, side, channels),
        schedule,
        encode_text,
        lambda params, rgb, key: 2.0 * resize_bilinear(rgb, side) - 1.0,
        lambda params, z: jnp.clip(0.5 * z + 0.5, 0.0, 1.0),
        predict,
        predict_variance=predict_variance,
    )
