"""Latents of the training images, shard by shard, as the U-Net's training comes to need them."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dreamfusion_jax.diffusion.loading.model_files import weights_digest
from dreamfusion_jax.diffusion.loading.weights import read_component
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.toybox import dataset
from dreamfusion_jax.toybox.dataset import LabeledImages
from dreamfusion_jax.toybox.image_ops import in_chunks, shrink, to_signed

Shard = tuple[np.ndarray, LabeledImages]


def encoder(vae: AutoencoderKL, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function: uint8 images [N, H, W, 3] -> their latents' means, unscaled."""

    @jax.jit
    def mean(params: Any, image: jax.Array) -> jax.Array:
        return vae.apply({"params": params}, to_signed(image), method="encode")[0]

    return lambda image: in_chunks(lambda chunk: mean(params, chunk), image)


def smaller_encoder(directory: pathlib.Path, downscale: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the encoder in `directory`, of images shrunk until a latent is `downscale` wide."""
    config, params = read_component(directory)
    vae = AutoencoderKL.from_config(config)
    encode, ratio = encoder(vae, params), downscale // vae.downscale
    return lambda image: encode(shrink(image, image.shape[1] // ratio))


def shard_loader(
    images: pathlib.Path, vae: pathlib.Path, cache: pathlib.Path
) -> Callable[[int], Shard]:
    """Returns a function: number of a shard -> scaled latents in float16, labels.

    Args:
      images: where the shards are.
      vae: the autoencoder's directory.
      cache: where latents are kept once they are computed.
    """
    config, params = read_component(vae)
    encode = encoder(AutoencoderKL.from_config(config), params)
    cache = cache / weights_digest(vae)[:12]
    cache.mkdir(parents=True, exist_ok=True)

    def load(index: int) -> Shard:
        shard = dataset.load_shard(images, index)
        checksum = zlib.crc32(dataset.shard_path(images, index).read_bytes())
        path = cache / f"{index:05d}_{checksum:08x}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, encode(shard.image).astype(np.float16))
            partial.replace(path)
        return np.load(path) * np.float16(config["scaling_factor"]), shard.without_pixels()

    return load


def growing(
    load: Callable[[int], Shard], shards_at: Callable[[int], int]
) -> Callable[[int], Shard]:
    """Returns a function: step -> the first shards, joined; `shards_at` says how many.

    What a step sees depends on its number alone, so that a resumed training sees the same.
    """
    shards: list[Shard] = []
    joined: list[Shard] = []

    def at(step: int) -> Shard:
        wanted = shards_at(step)
        if len(shards) < wanted:
            shards.extend(load(index) for index in range(len(shards), wanted))
            latents, labels = zip(*shards, strict=True)
            joined[:] = [(np.concatenate(latents), dataset.join(labels))]
        return joined[0]

    return at
