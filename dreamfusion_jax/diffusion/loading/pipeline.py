"""Loads a prior and its params from a directory in diffusers' layout.

model_index.json decides what kind of pipeline it is: without a VAE it is one on pixels, with a T5
it is a DeepFloyd IF, with two text encoders an SDXL. A file is a checkpoint in LDM names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dreamfusion_jax.diffusion.loading.model_files import (
    NETWORKS,
    read_config,
    text_encoder_digest,
    weights_files,
)
from dreamfusion_jax.diffusion.loading.names import TEXT_PROJECTION
from dreamfusion_jax.diffusion.loading.parts import (
    NOTHING_ADDED,
    Additions,
    Parts,
    Text,
    check_fit,
    clip_text,
    load_parts,
    xl_text,
)
from dreamfusion_jax.diffusion.loading.single_file import multi_view_unet, open_single_file
from dreamfusion_jax.diffusion.loading.t5_encoder import load_t5_encoder
from dreamfusion_jax.diffusion.loading.text_encoder import Tower
from dreamfusion_jax.diffusion.loading.weights import (
    DevicePutFn,
    build_module,
    folder_source,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.diffusion.priors.unet_predictor import sample_side
from dreamfusion_jax.diffusion.schedule import Schedule, schedule_from_config
from dreamfusion_jax.runtime.errors import PriorError

# Pipelines of DeepFloyd IF that are no text-to-image priors.
LATER_STAGES = (
    *("IFSuperResolutionPipeline", "IFImg2ImgPipeline", "IFImg2ImgSuperResolutionPipeline"),
    *("IFInpaintingPipeline", "IFInpaintingSuperResolutionPipeline"),
)


MULTI_VIEW_UNET = "MultiViewUNetModel"


def load_prior(
    path: str | Path,
    dtype: Any = jnp.float32,
    vae_dtype: Any = None,
    variant: str = "",
    place: DevicePutFn = jnp.asarray,
    additions: Additions = NOTHING_ADDED,
    prediction_type: str = "",
) -> tuple[Prior, PriorParams]:
    """Loads a diffusers-layout directory, or a checkpoint in one file.

    Args:
      path: the directory or the file.
      dtype: of the U-Net's products and of its weights.
      vae_dtype: of the autoencoder's arithmetic and of its weights; None: `dtype`.
      variant: of the weights' files, such as "fp16"; empty: full precision if it is there.
      place: puts each array of weights where it is to stay; called once for each, as it is read.
      additions: low-rank updates and new words.
      prediction_type: what the U-Net predicts; "": what the files say.

    Returns:
      The prior and its params, {"unet": params, "vae": params} (no "vae" in pixel space). The text
      encoder's params stay on the host: it runs a few times, before the first step, and so is
      always in float32.

    Raises:
      PriorError: a file is missing or broken, or not supported; the message names it.
    """
    with _named_in_errors(path):
        parts = _open(Path(path), dtype, vae_dtype, variant, prediction_type)
        return load_parts(parts, dtype, place, additions)


def check_prior(path: str | Path, variant: str = "") -> None:
    """Checks a directory, or a file, as far as that is possible without reading its weights.

    Raises:
      PriorError: as `load_prior` does.
    """
    path = Path(path)
    with _named_in_errors(path):
        check_fit(_open(path, jnp.float32, None, variant))
        for network in NETWORKS:
            if (path / network).is_dir():
                weights_files(path / network, variant)


@contextlib.contextmanager
def _named_in_errors(path: str | Path) -> Iterator[None]:
    """Raises the system's errors of reading as PriorErrors that name the place."""
    try:
        yield
    except OSError as error:  # no permission, a failing disk
        raise PriorError(f"{path} cannot be read ({error}).") from error


def _open(path: Path, dtype: Any, vae_dtype: Any, variant: str, prediction_type: str = "") -> Parts:
    """Builds the networks of a directory or of a checkpoint in one file."""
    if path.is_file():
        parts = open_single_file(path, dtype, vae_dtype, prediction_type)
    else:
        parts = _open_folder(path, dtype, vae_dtype, variant)
    if prediction_type:
        schedule = parts.schedule._replace(prediction_type=prediction_type)
        parts = parts._replace(schedule=schedule)
    return parts


def _open_folder(path: Path, dtype: Any, vae_dtype: Any, variant: str) -> Parts:
    """Builds the networks of a directory."""
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
    if index["unet"][1] == MULTI_VIEW_UNET:
        unet, source = multi_view_unet(path / "unet", variant, dtype)
    else:
        unet = build_module(path / "unet", UNet2DConditionModel, dtype)
        source = folder_source(path / "unet", variant)
    sources = {"unet": source}
    vae = None
    if _has(index, "vae"):
        vae = build_module(path / "vae", AutoencoderKL, _vae_dtype(path, index, vae_dtype or dtype))
        sources["vae"] = folder_source(path / "vae", variant)
    text = _build_text(path, index, unet, vae, variant)
    schedule = _load_schedule(path / "scheduler", index)
    return Parts(path / "unet" / "config.json", unet, vae, text, schedule, sources)


def _build_text(
    path: Path,
    index: dict[str, Any],
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | None,
    variant: str,
) -> Text:
    """Builds what reads the texts, without weights: one CLIP, two of SDXL, or a T5."""
    folder = path / "text_encoder"
    if index["text_encoder"][1] == "T5EncoderModel":
        t5 = build_module(folder, T5EncoderModel)
        digest = functools.partial(text_encoder_digest, path, variant)
        source = f"d_model ({t5.d_model})"
        return Text(
            t5.d_model, 0, source, (), lambda towers: load_t5_encoder(path, t5, variant), digest
        )
    tower = _tower(path, "", CLIPTextModel, variant)
    if not _has(index, "text_encoder_2"):
        return clip_text(tower)
    other = _tower(path, "_2", CLIPTextModelWithProjection, variant)
    with reraise_as_prior_error(path / "unet" / "config.json"):
        size = sample_side(unet) * (vae.downscale if vae else 1)
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return xl_text((tower, other), size, zeros)


def _tower(path: Path, number: str, module_class: Any, variant: str) -> Tower:
    """Builds a text tower; one that is read without its projection may have it beside it."""
    folder = path / f"text_encoder{number}"
    module = build_module(folder, module_class)
    ignored = (TEXT_PROJECTION,) if module_class is CLIPTextModel else ()
    source = folder_source(folder, variant, ignored)
    return Tower(module, source, path / f"tokenizer{number}")


def _vae_dtype(path: Path, index: dict[str, Any], dtype: Any) -> Any:
    """Returns the number format of the autoencoder: SDXL's overflows in any but float32."""
    if _has(index, "text_encoder_2") and read_config(path / "vae").get("force_upcast", True):
        return jnp.float32
    return dtype


def _load_schedule(directory: Path, index: dict[str, Any]) -> Schedule:
    """Reads the schedule, whose class model_index.json names where its own config does not.

    StableDiffusionPipeline overrules a sampler's config: it starts at index 1 and clips nothing.
    """
    config = read_config(directory, "scheduler_config.json")
    is_t5, is_xl = index["text_encoder"][1] == "T5EncoderModel", _has(index, "text_encoder_2")
    with reraise_as_prior_error(directory / "scheduler_config.json"):
        schedule = schedule_from_config({"_class_name": index["scheduler"][1]} | config)
        if is_t5 or is_xl:
            return schedule._replace(steps_offset=int(config.get("steps_offset", 0)))
        return schedule._replace(clip_sample_range=None)


def _has(index: dict[str, Any], name: str) -> bool:
    """Returns whether model_index.json has the component: [library, class], not [null, null]."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
