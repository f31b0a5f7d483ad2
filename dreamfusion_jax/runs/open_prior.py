"""Loads the prior that the settings name, in the number formats that suit the machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dreamfusion_jax.config.flags import name_flags
from dreamfusion_jax.diffusion.loading.hub import resolve_model
from dreamfusion_jax.diffusion.loading.lora_files import Lora, parse_lora
from dreamfusion_jax.diffusion.loading.model_files import PICKLES, file_digest, pipeline_digest
from dreamfusion_jax.diffusion.loading.parts import Additions
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.weights import DevicePutFn
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.diffusion.priors.prior import Prior, PriorParams
from dreamfusion_jax.runs import memory_advice
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.device import platform
from dreamfusion_jax.runtime.errors import NumberFormatError, PriorError, UserError
from dreamfusion_jax.runtime.files import local_path

TOYBOX = Path(__file__).parent.parent / "toybox" / "weights"


def find_prior(config: PriorOptions) -> Path:
    """Returns the directory of a prior, downloaded if necessary. Raises a UserError."""
    if config.prior == "toybox":
        return TOYBOX
    with name_flags():
        return resolve_model(config.prior, config.revision, config.variant)


def find_additions(config: PriorOptions) -> Additions:
    """Returns what is added to the prior. Raises a UserError where a file is not there."""
    loras = []
    for text in _listed(config.lora):
        try:
            name, scale = parse_lora(text)
        except ValueError as error:
            raise UserError(f"--lora={text}: {error}.") from None
        loras.append(Lora(_file("lora", name), scale))
    return Additions(loras, [_file("embedding", name) for name in _listed(config.embedding)])


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _file(flag: str, name: str) -> Path:
    path = local_path(name, flag)
    if path.suffix in PICKLES:
        raise UserError(
            f"--{flag}={name} is a pickle, which can run any code when it is read: give a"
            " .safetensors file."
        )
    if not path.is_file():
        raise UserError(f"--{flag}={name} is no file: give a .safetensors file on this machine.")
    return path


def prior_digest(config: PriorOptions, path: Path) -> str:
    """Returns the SHA-256 of a prior's files, with those that are added to it.

    Raises:
      UserError: one is missing or cannot be read.
    """
    additions = find_additions(config)
    try:
        digest = pipeline_digest(path, config.variant)
        if not any(additions):
            return digest
        added = [f"{file_digest(lora.path)} {lora.scale!r}" for lora in additions.loras]
        added += [file_digest(file) for file in additions.embeddings]
        return hashlib.sha256(" ".join([digest, *added]).encode()).hexdigest()
    except OSError as error:
        raise PriorError(f"{path} cannot be read ({error}): check the disk.") from error


def read_prior(config: PriorOptions, place: DevicePutFn) -> tuple[Prior, PriorParams, str]:
    """Loads a prior as `open_prior` does; also returns the SHA-256 of its files."""
    path = find_prior(config)
    return *open_prior(config, place, path), prior_digest(config, path)


def open_prior(
    config: PriorOptions, place: DevicePutFn = jax.device_put, path: Path | None = None
) -> tuple[Prior, PriorParams]:
    """Loads the prior in the number formats that suit the machine.

    Args:
      place: puts each array of its weights where the steps need it; called once for each.
      path: its directory, where `find_prior` was called before.

    Raises:
      UserError: the prior is not found, its files are wrong, or memory runs out.
    """
    additions = find_additions(config)
    path = path or find_prior(config)
    dtype, vae_dtype = prior_dtypes(config)
    with oom.oom_context("the prior was loaded", lambda: memory_advice.prior_remedies(dtype)):
        try:
            return load_prior(
                path, dtype, vae_dtype, config.variant, place, additions, _prediction(config)
            )
        except NumberFormatError as error:
            raise PriorError(
                f"{error} Give --prior_dtype=float32, or bfloat16, which costs accuracy."
            ) from None


def _prediction(config: PriorOptions) -> str:
    return "" if config.prediction_type == "auto" else config.prediction_type


def prior_dtypes(config: PriorOptions) -> tuple[Any, Any]:
    """Returns the number formats of the prior's U-Net and of its autoencoder.

    Guidance multiplies the difference that the text makes, which is small. "auto" keeps its error
    below 6 % where the difference is 3 % of the noise; bfloat16 does not (measured by
    tests/benchmarks/prior_precision.py). So a GPU multiplies in float16, and a TPU, which cannot,
    in float32 (see `float32_products`).

    Raises:
      UserError: the platform does not multiply in the chosen format.
    """
    here = platform()
    if config.prior_dtype == "float16" and here == "tpu":
        raise UserError(
            "--prior_dtype=float16: a TPU does not multiply in it. auto is float32 there; bfloat16"
            " takes half the memory and costs accuracy."
        )
    dtypes = {"float32": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16}
    auto = {"cpu": jnp.float32, "tpu": jnp.float32}.get(here, jnp.float16)
    vae_auto = jnp.float32 if here == "cpu" else jnp.bfloat16
    return dtypes.get(config.prior_dtype, auto), dtypes.get(config.vae_dtype, vae_auto)
