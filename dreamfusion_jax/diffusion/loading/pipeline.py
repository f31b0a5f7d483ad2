"""Loads a prior and its params from a directory in diffusers' layout.

model_index.json decides what kind of pipeline it is: without a VAE it is one on pixels, with a T5
it is a DeepFloyd IF, with two text encoders an SDXL.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.model_files import (
    NETWORKS,
    read_config,
    text_encoder_digest,
    weights_files,
)
from dreamfusion_jax.diffusion.loading.t5_encoder import load_t5_encoder
from dreamfusion_jax.diffusion.loading.text_encoder import load_text_encoder
from dreamfusion_jax.diffusion.loading.weights import (
    DevicePutFn,
    build_module,
    load_params,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.loading.xl_encoder import load_xl_encoder
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.latent import latent_prior
from dreamfusion_jax.diffusion.priors.pixel import pixel_prior
from dreamfusion_jax.diffusion.priors.prior import EncodeText, Prior, PriorParams
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
    path = Path(path)
    with _named_in_errors(path):
        unet, vae, text, schedule = _build(path, dtype, vae_dtype, variant)
        encode_text = text.load()
        params = {"unet": load_params(unet, path / "unet", dtype, variant, place)}
        if vae is None:
            prior = pixel_prior(unet, schedule, encode_text)
        else:
            params["vae"] = load_params(vae, path / "vae", vae.dtype, variant, place)
            prior = latent_prior(unet, vae, schedule, encode_text)
        return prior._replace(text_digest=text.digest), params


def check_prior(path: str | Path, variant: str = "") -> None:
    """Checks a directory as far as that is possible without reading its weights.

    Raises:
      PriorError: as `load_prior` does.
    """
    path = Path(path)
    with _named_in_errors(path):
        _build(path, jnp.float32, None, variant)
        for network in NETWORKS:
            if (path / network).is_dir():
                weights_files(path / network, variant)


@contextlib.contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    """Raises the system's errors of reading as PriorErrors that name the directory."""
    try:
        yield
    except OSError as error:  # no permission, a failing disk
        raise PriorError(f"{path} cannot be read ({error}).") from error


class _Networks(NamedTuple):
    """A pipeline's networks without their weights; `vae` is None in pixel space."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    text: _Text
    schedule: Schedule


def _build(path: Path, dtype: Any, vae_dtype: Any, variant: str) -> _Networks:
    """Builds what the configs describe. Raises PriorError where they are wrong."""
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
    unet = build_module(path / "unet", UNet2DConditionModel, dtype)
    vae = None
    if _has(index, "vae"):
        vae = build_module(path / "vae", AutoencoderKL, _vae_dtype(path, index, vae_dtype or dtype))
    text = _build_text(path, index, unet, vae, variant)
    _check_fit(path, unet, text, vae)
    schedule = _load_schedule(path / "scheduler", forced_offset=text.digest is None)
    return _Networks(unet, vae, text, schedule)


class _Text(NamedTuple):
    """What reads a pipeline's texts.

    Attributes:
      width, pooled_width: of its hidden states and of its pooled vector (0: it gives none).
      source: where the configs say the width, for messages.
      load: reads the weights.
      digest: of its files, where its results are worth keeping.
    """

    width: int
    pooled_width: int
    source: str
    load: Callable[[], EncodeText]
    digest: Callable[[], str] | None = None


def _build_text(
    path: Path,
    index: dict[str, Any],
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | None,
    variant: str,
) -> _Text:
    """Builds what reads the texts, without weights: one CLIP, two of SDXL, or a T5."""
    folder = path / "text_encoder"
    if index["text_encoder"][1] == "T5EncoderModel":
        t5 = build_module(folder, T5EncoderModel)
        load = functools.partial(load_t5_encoder, path, t5, variant)
        digest = functools.partial(text_encoder_digest, path, variant)
        return _Text(t5.d_model, 0, f"d_model ({t5.d_model})", load, digest)
    clip = build_module(folder, CLIPTextModel)
    source = f"hidden_size ({clip.hidden_size})"
    if not _has(index, "text_encoder_2"):
        load = functools.partial(load_text_encoder, path, clip, variant)
        return _Text(clip.hidden_size, 0, source, load)
    other = build_module(path / "text_encoder_2", CLIPTextModelWithProjection)
    width = other.text_config.hidden_size
    with reraise_as_prior_error(path / "unet" / "config.json"):
        size = sample_side(unet) * (vae.downscale if vae else 1)
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    load = functools.partial(load_xl_encoder, path, (clip, other), size, zeros, variant)
    source = f"sum of both hidden_size ({clip.hidden_size} + {width})"
    return _Text(clip.hidden_size + width, other.projection_dim, source, load)


def _vae_dtype(path: Path, index: dict[str, Any], dtype: Any) -> Any:
    """Returns the number format of the autoencoder: SDXL's overflows in any but float32."""
    if _has(index, "text_encoder_2") and read_config(path / "vae").get("force_upcast", True):
        return jnp.float32
    return dtype


def _load_schedule(directory: Path, forced_offset: bool) -> Schedule:
    """Reads the schedule; with `forced_offset` a sampler's is not the config's."""
    config = read_config(directory, "scheduler_config.json")
    with reraise_as_prior_error(directory / "scheduler_config.json"):
        schedule = schedule_from_config(config)
        if forced_offset:
            return schedule
        return schedule._replace(steps_offset=int(config.get("steps_offset", 0)))


def _check_fit(
    path: Path, unet: UNet2DConditionModel, text: _Text, vae: AutoencoderKL | None
) -> None:
    """Raises PriorError unless the networks belong together; no weights have been read yet."""
    channels = vae.latent_channels if vae else 3
    with reraise_as_prior_error(path / "unet" / "config.json"):
        sample_side(unet)
        if unet.text_width != text.width:
            key = "encoder_hid_dim" if unet.encoder_hid_dim else "cross_attention_dim"
            raise PriorError(
                f"{key}={unet.text_width} is not the {text.source} that text_encoder/config.json "
                "gives."
            )
        if unet.pooled_width and unet.pooled_width != text.pooled_width:
            raise PriorError(
                f"projection_class_embeddings_input_dim={unet.projection_class_embeddings_input_dim}"
                f" has {unet.pooled_width} left for a text's vector, but the text encoders give "
                f"{text.pooled_width or 'none'}."
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
