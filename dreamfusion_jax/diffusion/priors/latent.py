"""Priors on the latents of an autoencoder, as Stable Diffusion."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.camera import with_camera
from dreamfusion_jax.diffusion.priors.prior import (
    EncodeText,
    Prior,
    PriorParams,
    resize_bilinear,
    without_pose,
)
from dreamfusion_jax.diffusion.priors.unet_predictor import (
    float32_products,
    sample_side,
    unet_predictor,
)
from dreamfusion_jax.diffusion.schedule import Schedule


def latent_prior(
    unet: UNet2DConditionModel, vae: AutoencoderKL, schedule: Schedule, encode_text: EncodeText
) -> Prior:
    """Makes a prior on latents; its params are {"unet": params, "vae": params}."""
    side = sample_side(unet)
    image_size = side * vae.downscale

    def encode(params: PriorParams, rgb: jax.Array, key: jax.Array | None) -> jax.Array:
        rgb = 2.0 * resize_bilinear(rgb, image_size) - 1.0
        with float32_products(vae.dtype):
            z, log_variance = vae.apply({"params": params["vae"]}, rgb, method="encode")
        if key is not None:
            z = z + jnp.exp(0.5 * log_variance) * jax.random.normal(key, z.shape)
        return vae.scaling_factor * z

    def decode(params: PriorParams, z: jax.Array) -> jax.Array:
        z = z / vae.scaling_factor
        with float32_products(vae.dtype):
            rgb = vae.apply({"params": params["vae"]}, z, method="decode")
        return jnp.clip(0.5 * rgb + 0.5, 0.0, 1.0)

    return Prior(
        image_size,
        (side, side, unet.in_channels),
        schedule,
        encode_text,
        encode,
        decode,
        unet_predictor(unet, schedule),
        unet.joint_views,
        with_camera if unet.camera_dim else without_pose,
    )
