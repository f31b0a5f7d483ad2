"""Loads a prior and its params from a directory in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.model_files import read_config
from dreamfusion_jax.diffusion.loading.text_encoder import load_text_encoder
from dreamfusion_jax.diffusion.loading.weights import (
    DevicePutFn,
    build_module,
    load_params,
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
      place: puts each array of weights where it is to stay; called once for each, as it is read.

    Returns:
      The prior and its params, {"unet": params, "vae": params} (no "vae" in pixel space). The text
      encoder's params stay on the host: it runs a few times, before the first step, and so is
      always in float32.

    Raises:
      PriorError: a file is missing or broken, or not supported; the message names it.
    """
    try:
        return _load_prior(Path(path), dtype, vae_dtype, variant, place)
    except OSError as error:  # no permission, a failing disk
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
    unet = build_module(path / "unet", UNet2DConditionModel, dtype)
    text_encoder = build_module(path / "text_encoder", CLIPTextModel)
    vae = None
    if _has(index, "vae"):
        vae = build_module(path / "vae", AutoencoderKL, vae_dtype or dtype)
    _check_fit(path, unet, text_encoder, vae)
    schedule = _load_schedule(path / "scheduler")
    encode_text = load_text_encoder(path, text_encoder, variant)
    params = {"unet": load_params(unet, path / "unet", dtype, variant, place)}
    if vae is None:
        return pixel_prior(unet, schedule, encode_text), params
    params["vae"] = load_params(vae, path / "vae", vae.dtype, variant, place)
    return latent_prior(unet, vae, schedule, encode_text), params


def _load_schedule(directory: Path) -> Schedule:
    config = read_config(directory, "scheduler_config.json")
    with reraise_as_prior_error(directory / "scheduler_config.json"):
        return schedule_from_config(config)


def _check_fit(
    path: Path, unet: UNet2DConditionModel, text: CLIPTextModel, vae: AutoencoderKL | None
) -> None:
    """Raises PriorError unless the networks belong together; no weights have been read yet."""
    channels = vae.latent_channels if vae else 3
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
    """Returns whether model_index.json has the component: [library, class], not [null, null]."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
