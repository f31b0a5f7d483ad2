"""Loads a prior and its params from a directory in diffusers' layout.

model_index.json decides what kind of pipeline it is: without a VAE it is one on pixels, with a T5
it is a DeepFloyd IF.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.model_files import read_config, text_encoder_digest
from dreamfusion_jax.diffusion.loading.t5_encoder import load_t5_encoder
from dreamfusion_jax.diffusion.loading.text_encoder import load_text_encoder
from dreamfusion_jax.diffusion.loading.weights import (
    DevicePutFn,
    build_module,
    load_params,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.latent import latent_prior
from dreamfusion_jax.diffusion.priors.pixel import pixel_prior
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.priors.unet_predictor import sample_side
from dreamfusion_jax.diffusion.schedule import Schedule, schedule_from_config
from dreamfusion_jax.runtime.errors import PriorError

# Pipelines of DeepFloyd IF that are no text-to-image priors.
LATER_STAGES = (
    *("IFSuperResolutionPipeline", "IFImg2ImgPipeline", "IFImg2ImgSuperResolutionPipeline"),
    *("IFInpaintingPipeline", "IFInpaintingSuperResolutionPipeline"),
)


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
    if index.get("_class_name") in LATER_STAGES:
        raise PriorError(
            f"{path}/model_index.json is of {index['_class_name']}, which enlarges or changes an "
            "image: give the first stage, such as DeepFloyd/IF-I-XL-v1.0."
        )
    reads_t5 = index["text_encoder"][1] == "T5EncoderModel"
    unet = build_module(path / "unet", UNet2DConditionModel, dtype)
    text_encoder = build_module(
        path / "text_encoder", T5EncoderModel if reads_t5 else CLIPTextModel
    )
    vae = None
    if _has(index, "vae"):
        vae = build_module(path / "vae", AutoencoderKL, vae_dtype or dtype)
    _check_fit(path, unet, text_encoder, vae)
    schedule = _load_schedule(path / "scheduler", forced_offset=not reads_t5)
    load_text = load_t5_encoder if reads_t5 else load_text_encoder
    encode_text = load_text(path, text_encoder, variant)
    params = {"unet": load_params(unet, path / "unet", dtype, variant, place)}
    if vae is None:
        prior = pixel_prior(unet, schedule, encode_text)
    else:
        params["vae"] = load_params(vae, path / "vae", vae.dtype, variant, place)
        prior = latent_prior(unet, vae, schedule, encode_text)
    if reads_t5:
        prior = prior._replace(text_digest=functools.partial(text_encoder_digest, path, variant))
    return prior, params


def _load_schedule(directory: Path, forced_offset: bool) -> Schedule:
    """Reads the schedule; with `forced_offset` a sampler's is not the config's."""
    config = read_config(directory, "scheduler_config.json")
    with reraise_as_prior_error(directory / "scheduler_config.json"):
        schedule = schedule_from_config(config)
        if forced_offset:
            return schedule
        return schedule._replace(steps_offset=int(config.get("steps_offset", 0)))


def _check_fit(
    path: Path,
    unet: UNet2DConditionModel,
    text: CLIPTextModel | T5EncoderModel,
    vae: AutoencoderKL | None,
) -> None:
    """Raises PriorError unless the networks belong together; no weights have been read yet."""
    channels, is_clip = vae.latent_channels if vae else 3, isinstance(text, CLIPTextModel)
    with reraise_as_prior_error(path / "unet" / "config.json"):
        sample_side(unet)
        if unet.text_width != text.hidden_size:
            key = "encoder_hid_dim" if unet.encoder_hid_dim else "cross_attention_dim"
            raise PriorError(
                f"{key}={unet.text_width} is not the {'hidden_size' if is_clip else 'd_model'} "
                f"({text.hidden_size}) that text_encoder/config.json gives."
            )
        if unet.in_channels != channels:
            raise PriorError(
                f"in_channels={unet.in_channels} is not supported, only the {channels} of what is "
                "denoised are: networks for inpainting, depth or upscaling are no priors."
            )
        if unet.out_channels not in (channels, 2 * channels if vae is None else channels):
            raise PriorError(
                f"out_channels={unet.out_channels} is not supported, only as many as in_channels "
                f"({unet.in_channels}) are, or in pixel space twice as many, with a variance."
            )


def _has(index: dict[str, Any], name: str) -> bool:
    """Returns whether model_index.json has the component: [library, class], not [null, null]."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
