"""A directory in diffusers' layout -> a prior and its params."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.text_encoder import load_text_encoder
from dreamfusion_jax.diffusion.loading.weights import (
    DevicePutFn,
    build_module,
    load_module,
    read_config,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.latent import latent_prior
from dreamfusion_jax.diffusion.priors.pixel import pixel_prior
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.priors.unet_predictor import sample_side
from dreamfusion_jax.diffusion.schedule import Schedule, schedule_from_config
from dreamfusion_jax.runtime.errors import PriorError


def load_prior(
    path: str | Path,
    dtype: Any = jnp.float32,
    vae_dtype: Any = None,
    variant: str = "",
    place: DevicePutFn = jnp.asarray,
) -> tuple[Prior, PriorParams]:
    """Loads a diffusers-layout directory.

    Args:
      path: the directory.
      dtype: of the U-Net's products and of its weights.
      vae_dtype: of the autoencoder's arithmetic and of its weights; None: `dtype`.
      variant: of the weights' files, such as "fp16"; empty: full precision if it is there.
      place: puts each array of weights where it is to stay, as soon as it is read.

    Returns:
      The prior and its weights, {"unet": params, "vae": params} (no "vae" in pixel space). The text
      encoder's weights stay on the host: it runs a few times, before the first step, and so is
      always in float32.
    """
    try:
        return _load_prior(Path(path), dtype, vae_dtype, variant, place)
    except OSError as error:  # a folder that may not be looked into, a disk that fails
        raise PriorError(f"{path} cannot be read ({error}).") from error


def _load_prior(
    path: Path, dtype: Any, vae_dtype: Any, variant: str, place: DevicePutFn
) -> tuple[Prior, PriorParams]:
    index = read_config(path, "model_index.json")
    absent = [
        name for name in ("unet", "text_encoder", "tokenizer", "scheduler") if not _has(index, name)
    ]
    if absent:
        raise PriorError(
            f"{path}/model_index.json names no {', '.join(absent)}: not a text-to-image pipeline."
        )
    with_vae = _has(index, "vae")
    _check_fit(path, with_vae)
    schedule = _load_schedule(path / "scheduler")
    encode_text = load_text_encoder(path, variant)
    unet, unet_params = load_module(path / "unet", UNet2DConditionModel, dtype, variant, place)
    if not with_vae:
        return pixel_prior(unet, schedule, encode_text), {"unet": unet_params}
    vae_dtype = vae_dtype or dtype
    vae, vae_params = load_module(path / "vae", AutoencoderKL, vae_dtype, variant, place)
    prior = latent_prior(unet, vae, schedule, encode_text)
    return prior, {"unet": unet_params, "vae": vae_params}


def _load_schedule(directory: Path) -> Schedule:
    config = read_config(directory, "scheduler_config.json")
    with reraise_as_prior_error(directory / "scheduler_config.json"):
        return schedule_from_config(config)


def _check_fit(path: Path, with_vae: bool) -> None:
    """Raises PriorError unless the networks' configs belong together; reads no weights."""
    unet = build_module(path / "unet", UNet2DConditionModel)
    text = build_module(path / "text_encoder", CLIPTextModel)
    channels = 3
    if with_vae:
        channels = build_module(path / "vae", AutoencoderKL).latent_channels
    with reraise_as_prior_error(path / "unet" / "config.json"):
        sample_side(unet)
        if unet.cross_attention_dim != text.hidden_size:
            raise PriorError(
                f"cross_attention_dim={unet.cross_attention_dim} is not the hidden_size "
                f"({text.hidden_size}) that text_encoder/config.json gives."
            )
        if unet.in_channels != channels:
            raise PriorError(
                f"in_channels={unet.in_channels} is not supported, only the {channels} of what is "
                "denoised are: networks for inpainting, depth or upscaling are no priors."
            )
        if unet.out_channels != unet.in_channels:
            raise PriorError(
                f"out_channels={unet.out_channels} is not supported, only as many as in_channels "
                f"({unet.in_channels}) are: predicted variances are not read."
            )


def _has(index: dict[str, Any], name: str) -> bool:
    """model_index.json names a component as [library, class], or as [null, null]."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
