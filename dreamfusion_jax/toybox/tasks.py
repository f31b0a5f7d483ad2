"""What the toybox's networks learn: for each, its batches, its loss, an image of progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion import schedule as schedules
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.schedule import Schedule
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.cpu_conv import fast_on_cpu
from dreamfusion_jax.toybox.dataset import LabeledImages
from dreamfusion_jax.toybox.image_ops import from_signed, grid, random_crops, to_signed

Params = Any
Batch = Any
KL_WEIGHT = 3e-4
ANCHOR_WEIGHT = 0.02
LOG_VARIANCE = -4.0  # of latents at first: of 0, channels drown in noise before they say anything
DETAIL_WEIGHT = 4.0
DETAIL_CONTRAST = 0.06
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0
NOISE_LEVELS = 8  # parts of [0, 1] whose losses are told apart


class SamplingBias(NamedTuple):
    """What the diffusion training sees more often than chance would show it.

    Attributes:
      fine_share: of the captions that name one of eight azimuths.
      front_share: of the images that show a kind with a front, over their natural share.
      t_min: the least diffusion time. What a view word decides is decided at high noise.
    """

    fine_share: float = captions.FINE_SHARE
    front_share: float = 0.0
    t_min: float = 0.0


# With 55 % of captions that name an azimuth, and no more, left and right are hardly learned.
VIEWS = SamplingBias(fine_share=0.8, front_share=0.25)


class Task(NamedTuple):
    """One network's training problem; pure functions.

    Attributes:
      init: key -> params.
      batch: numpy generator, batch size, step -> batch (host arrays).
      loss: params, batch, key -> scalar, metrics.
      preview: params -> RGB image [H, W, 3] uint8 of what the network does now.
      measure: params -> named numbers, as slow to get as a preview; None: there are none.
    """

    init: Callable[[jax.Array], Params]
    batch: Callable[[np.random.Generator, int, int], Batch]
    loss: Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    preview: Callable[[Params], np.ndarray]
    measure: Callable[[Params], dict[str, float]] | None = None


def vae_task(
    vae: AutoencoderKL,
    images: LabeledImages,
    crop_size: int,
    anchor: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Task:
    """Reconstructs crops in L1, weighted to what is fine, with a slight pull to the unit Gaussian.

    Args:
      crop_size: pixels a side of the crops; the autoencoder is convolutional.
      anchor: uint8 crops -> latents [B, h, w, c] of a smaller autoencoder, which the first c
        channels are to be. A U-Net that was trained on those goes on with the larger one, and has
        only the other channels to learn, which hold what the smaller autoencoder lost.
    """

    @jax.jit
    def init(key: jax.Array) -> Params:
        params = vae.init(key, *vae.dummy_inputs())["params"]
        bias = params["quant_conv"]["bias"]
        params["quant_conv"]["bias"] = bias.at[len(bias) // 2 :].set(LOG_VARIANCE)
        return params

    def batch(rng: np.random.Generator, size: int, step: int = 0) -> Batch:
        del step
        image = random_crops(rng, images.image[rng.integers(images.count, size=size)], crop_size)
        return image, anchor(image) if anchor else None

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
        image, anchors = batch
        rgb = to_signed(image)
        with fast_on_cpu():
            mean, log_variance = vae.apply({"params": params}, rgb, method="encode")
            latent = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
            decoded = vae.apply({"params": params}, latent, method="decode")
        error = jnp.mean(jnp.abs(decoded - rgb) * (1.0 + DETAIL_WEIGHT * detail(rgb)))
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
        metrics = {"l1": error, "kl": kl}
        if anchors is None:
            return error + KL_WEIGHT * kl, metrics
        metrics["anchor"] = jnp.mean((mean[..., : anchors.shape[-1]] - anchors) ** 2)
        return error + KL_WEIGHT * kl + ANCHOR_WEIGHT * metrics["anchor"], metrics

    @jax.jit
    def reconstruct(params: Params, image: jax.Array) -> jax.Array:
        return from_signed(vae.apply({"params": params}, to_signed(image)))

    def preview(params: Params) -> np.ndarray:
        image = images.image[:16]
        return grid(np.concatenate([image, np.asarray(reconstruct(params, image))]), columns=8)

    return Task(init, batch, loss, preview)


def detail(rgb: jax.Array) -> jax.Array:
    """Marks with 1 the pixels [B, H, W, 1] near an edge or within something thin, others with 0.

    Most pixels are plain background or plain walls; thin legs and eyes would be too cheap to lose.
    """
    wide, once, padding = (1, 5, 5, 1), (1, 1, 1, 1), "SAME"
    total = jax.lax.reduce_window(rgb, 0.0, jax.lax.add, wide, once, padding)
    # How many pixels a window has: fewer at the border.
    rows, columns = (np.convolve(np.ones(side), np.ones(5), "same") for side in rgb.shape[1:3])
    blurred = total / np.outer(rows, columns)[..., None].astype(np.float32)
    contrast = jnp.max(jnp.abs(rgb - blurred), axis=-1, keepdims=True)
    return (contrast > DETAIL_CONTRAST).astype(rgb.dtype)


def diffusion_task(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    schedule: Schedule,
    data: Callable[[int], tuple[np.ndarray, LabeledImages]],
    tokenize: Callable[[list[str]], np.ndarray],
    draw: Callable[[Params], np.ndarray],
    measure: Callable[[Params], dict[str, float]] | None = None,
    bias: SamplingBias = VIEWS,
) -> Task:
    """Trains the U-Net and the text encoder together to predict the velocity of noised latents.

    Args:
      data: step -> scaled latents [N, h, w, c], and labels of their images.
      tokenize: captions -> ids [B, L].
      draw: params -> the preview.
      measure: see `Task`.
      bias: what to show more often.
    """

    @jax.jit
    def init(key: jax.Array) -> Params:
        unet_key, text_key = jax.random.split(key)
        text_params = text_encoder.init(text_key, *text_encoder.dummy_inputs())["params"]
        # Unit-sized words instead of CLIP's 0.02, so that they are told apart from the first step.
        words = text_params["embeddings"]["token_embedding"]
        words["embedding"] = words["embedding"] / jnp.std(words["embedding"])
        return {
            "unet": unet.init(unet_key, *unet.dummy_inputs())["params"],
            "text_encoder": text_params,
        }

    def batch(rng: np.random.Generator, size: int, step: int) -> Batch:
        latents, images = data(step)
        index = rng.integers(images.count, size=size)
        if bias.front_share:
            chosen = rng.random(size) < bias.front_share
            index = np.where(chosen, rng.choice(images.with_front(), size), index)
        words = images.take(index).draw_captions(rng, bias.fine_share)
        keep = rng.random(size) >= CAPTION_DROPOUT
        ids = tokenize([text if kept else "" for text, kept in zip(words, keep, strict=True)])
        return latents[index].astype(np.float32), ids

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict]:
        z, ids = batch
        t_key, eps_key = jax.random.split(key)
        # Stratified over the batch, which halves the noise of the loss at no cost.
        t = (jnp.arange(len(z)) + jax.random.uniform(t_key, (len(z),))) / len(z)
        t = bias.t_min + (1.0 - bias.t_min) * t
        eps = jax.random.normal(eps_key, z.shape)
        alpha, sigma = schedules.alpha_sigma(schedule, t)
        z_t = schedules.add_noise(z, eps, alpha, sigma)
        text = text_encoder.apply({"params": params["text_encoder"]}, ids).last
        index = schedules.time_index(schedule, t)
        with fast_on_cpu():
            prediction = unet.apply({"params": params["unet"]}, z_t, index, text)
        target = schedules.velocity(z, eps, alpha, sigma)
        error = jnp.mean((prediction - target) ** 2, axis=(1, 2, 3))
        # Min-SNR weighting (Hang et al., 2023) with SNR + 1 for SNR, which is the weight in z of a
        # velocity's plain error. With SNR itself the noisiest t, where alone the text decides,
        # would count for nothing: after 850 steps the U-Net did not yet listen to the text.
        signal = (alpha / sigma) ** 2 + 1.0
        weighted = jnp.mean(jnp.minimum(signal, MIN_SNR) / signal * error)
        # As the times are stratified, each part of the batch is one of the noise levels.
        by_level = jnp.stack([jnp.mean(part) for part in jnp.array_split(error, NOISE_LEVELS)])
        return weighted, {"velocity_mse": jnp.mean(error), "velocity_mse_by_t": by_level}

    return Task(init, batch, loss, draw, measure)
