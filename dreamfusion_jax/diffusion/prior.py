"""A frozen text-to-image diffusion model as a handful of pure functions.

Three kinds, one interface: latent (any Stable Diffusion in diffusers layout, the embedded toybox
among them), pixel (a pipeline without a VAE), and analytic (a Gaussian whose noise estimate is
known in closed form: the oracle of the tests).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.clip import CLIPTextModel
from dreamfusion_jax.diffusion.schedule import (
    Schedule,
    alpha_sigma,
    schedule_from_config,
    time_index,
)
from dreamfusion_jax.diffusion.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.vae import AutoencoderKL
from dreamfusion_jax.diffusion.weights import (
    Place,
    blamed_on,
    build_module,
    load_module,
    read_config,
)
from dreamfusion_jax.errors import PriorError
from dreamfusion_jax.files import read_text
from dreamfusion_jax.platform import platform

TOKENIZER_JSON = (
    *("tokenizer.json", "vocab.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
# Entries of tokenizer_config.json by which transformers would open a file anywhere.
LEADING_ELSEWHERE = ("fast_tokenizer_files", "gguf_file", "init_inputs", "merges", "vocab")
LARGEST_PICTURE = 1024  # side, as the U-Net counts it
LONGEST_NOTE = 300

Weights = Any  # a pytree of arrays, passed as an argument and never closed over
EncodeText = Callable[[Sequence[str]], jax.Array]


class Prior(NamedTuple):
    """A frozen prior; its weights travel beside it as an argument.

    Attributes:
      image_size: side in pixels of the square RGB image that it wants.
      latent_shape: [h, w, c] of what it denoises.
      schedule: t -> alpha, sigma, and what `predict` returns: noise, velocity or clean latent.
      encode_text: prompts -> [B, L, D]. Runs on the host's schedule, once a prompt.
      encode: weights, rgb [B, H, W, 3] in [0, 1] of any size, key -> z [B, h, w, c]. With a key the
        latent is sampled, with None it is the mean.
      decode: weights, z [B, h, w, c] -> rgb [B, image_size, image_size, 3] in [0, 1].
      predict: weights, z_t [B, h, w, c], t [B], text [B, L, D] -> the network's own prediction
        [B, h, w, c], float32. Not yet the noise: at zero signal a velocity says what z is, and the
        noise that it implies no longer does. `schedule.to_epsilon` and its like convert.
    """

    image_size: int
    latent_shape: tuple[int, int, int]
    schedule: Schedule
    encode_text: EncodeText
    encode: Callable[[Weights, jax.Array, jax.Array | None], jax.Array]
    decode: Callable[[Weights, jax.Array], jax.Array]
    predict: Callable[[Weights, jax.Array, jax.Array, jax.Array], jax.Array]


def load_prior(
    path: str | Path,
    dtype: Any = jnp.float32,
    vae_dtype: Any = None,
    variant: str = "",
    place: Place = jnp.asarray,
) -> tuple[Prior, Weights]:
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
    path: Path, dtype: Any, vae_dtype: Any, variant: str, place: Place
) -> tuple[Prior, Weights]:
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


def latent_prior(
    unet: UNet2DConditionModel, vae: AutoencoderKL, schedule: Schedule, encode_text: EncodeText
) -> Prior:
    """A prior on latents: weights are {"unet": params, "vae": params}."""
    side = _sample_side(unet)
    image_size = side * vae.downscale

    def encode(weights: Weights, rgb: jax.Array, key: jax.Array | None) -> jax.Array:
        rgb = 2.0 * resize_bilinear(rgb, image_size) - 1.0
        with float32_products(vae.dtype):
            z, log_variance = vae.apply({"params": weights["vae"]}, rgb, method="encode")
        if key is not None:
            z = z + jnp.exp(0.5 * log_variance) * jax.random.normal(key, z.shape)
        return vae.scaling_factor * z

    def decode(weights: Weights, z: jax.Array) -> jax.Array:
        z = z / vae.scaling_factor
        with float32_products(vae.dtype):
            rgb = vae.apply({"params": weights["vae"]}, z, method="decode")
        return jnp.clip(0.5 * rgb + 0.5, 0.0, 1.0)

    return Prior(
        image_size,
        (side, side, unet.in_channels),
        schedule,
        encode_text,
        encode,
        decode,
        _predictor(unet, schedule),
    )


def pixel_prior(unet: UNet2DConditionModel, schedule: Schedule, encode_text: EncodeText) -> Prior:
    """A prior on the picture itself, in [-1, 1]: weights are {"unet": params}."""
    side = _sample_side(unet)
    return Prior(
        side,
        (side, side, unet.in_channels),
        schedule,
        encode_text,
        lambda weights, rgb, key: 2.0 * resize_bilinear(rgb, side) - 1.0,
        lambda weights, z: jnp.clip(0.5 * z + 0.5, 0.0, 1.0),
        _predictor(unet, schedule),
    )


def analytic_prior(
    mean: float | np.ndarray, std: float, image_size: int = 4, steps: int = 1000
) -> Prior:
    """The prior of pictures x ~ N(mean, std^2 I) themselves, in closed form; its weights are {}.

    z_t is Gaussian with variance V = alpha^2 std^2 + sigma^2 around alpha mean, and the noise in it
    is expected to be eps_hat = sigma (z_t - alpha mean) / V. Text changes nothing.
    """
    schedule = schedule_from_config(
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": steps}
    )

    def predict(weights: Weights, z_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        alpha, sigma = (c[:, None, None, None] for c in alpha_sigma(schedule, t))
        return sigma * (z_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return Prior(
        image_size,
        (image_size, image_size, 3),
        schedule,
        lambda prompts: jnp.zeros((len(prompts), 1, 1)),
        lambda weights, rgb, key: resize_bilinear(rgb, image_size),
        lambda weights, z: jnp.clip(z, 0.0, 1.0),
        predict,
    )


def load_text_encoder(path: str | Path, variant: str = "") -> EncodeText:
    """Prompts -> last hidden states [B, L, D] in float32, padded to the tokeniser's full length."""
    path = Path(path)
    text_encoder, params = load_module(path / "text_encoder", CLIPTextModel, jnp.float32, variant)
    tokenize = load_tokenizer(
        path / "tokenizer", text_encoder.max_position_embeddings, text_encoder.vocab_size
    )

    @jax.jit
    def apply(params: Any, ids: jax.Array) -> jax.Array:
        with float32_products(text_encoder.dtype, "highest"):
            return text_encoder.apply({"params": params}, ids)[0]

    return lambda prompts: apply(params, tokenize(prompts))


def load_tokenizer(
    directory: str | Path, max_length: int, vocab_size: int | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """Prompts -> ids [B, L] below `vocab_size`, padded and cut as StableDiffusionPipeline does."""
    directory = Path(directory)
    _check_tokenizer_files(directory)
    from transformers import CLIPTokenizer  # slow to import: only those who load a prior wait

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(directory))
        length = min(int(tokenizer.model_max_length), max_length)
        largest_id = max(tokenizer.get_vocab().values())

        def tokenize(prompts: Sequence[str]) -> np.ndarray:
            _note_what_is_cut(tokenizer, prompts, length)
            ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
            return np.asarray(ids["input_ids"], np.int32).reshape(len(prompts), length)

        tokenize([""])  # what else is wrong shows here, or with the first letter it does not know
        if tokenizer.backend_tokenizer.model.token_to_id(str(tokenizer.unk_token)) is None:
            raise ValueError(f"its unk_token, {tokenizer.unk_token}, is not in its vocabulary")
    except Exception as error:  # transformers raises whatever the broken file led to
        raise PriorError(f"{directory} is not a CLIPTokenizer's directory ({error}).") from None
    if vocab_size is not None and max(largest_id, len(tokenizer) - 1) >= vocab_size:
        raise PriorError(
            f"{directory} holds {largest_id + 1} tokens, but the text encoder beside it knows "
            f"{vocab_size}: they are not of one pipeline."
        )
    return tokenize


def _check_tokenizer_files(directory: Path) -> None:
    """Refuses files without end, and those that would make transformers read files elsewhere."""
    for name in TOKENIZER_JSON:
        if (directory / name).exists():
            for key in read_config(directory, name):
                if _leads_elsewhere(name, key):
                    raise PriorError(f"{directory / name}: {key!r:.200} is not supported.")
    texts = list(directory.rglob("*.jinja"))
    if not (directory / "tokenizer.json").is_file():
        if not (directory / "vocab.json").is_file():
            raise PriorError(f"{directory} holds no CLIP vocabulary (vocab.json and merges.txt).")
        texts.append(directory / "merges.txt")
    for path in texts:
        try:
            read_text(path)
        except (OSError, ValueError) as error:
            raise PriorError(f"{path} cannot be read ({error}).") from None


def _leads_elsewhere(name: str, key: str) -> bool:
    if name == "special_tokens_map.json":
        return not key.endswith(("_token", "_tokens"))
    return name == "tokenizer_config.json" and key in LEADING_ELSEWHERE


def _note_what_is_cut(tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Names what the text encoder will not see of the first prompt that is too long."""
    for prompt in prompts:
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        if len(ids) > length:
            _note(length, tokenizer.decode(ids[length - 1 : -1]))
            return


@functools.cache  # told once, however often the prompt is encoded
def _note(length: int, cut: str) -> None:
    if len(cut) > LONGEST_NOTE:
        cut = f"{cut[: LONGEST_NOTE // 2]} ... {cut[-LONGEST_NOTE // 2 :]}"
    print(
        f"Note: the text encoder reads {length} tokens; it will not see {cut!r}.", file=sys.stderr
    )


def resize_bilinear(rgb: jax.Array, size: int) -> jax.Array:
    """rgb [B, H, W, 3] -> [B, size, size, 3], smoothed where it shrinks."""
    if rgb.shape[1:3] == (size, size):
        return rgb
    return jax.image.resize(rgb, (rgb.shape[0], size, size, rgb.shape[3]), "bilinear")


def float32_products(dtype: Any, precision: str = "high") -> AbstractContextManager[None]:
    """Within it, products traced of a float32 network are not rounded to bfloat16's 8 bits.

    A TPU rounds the factors so unless it is asked for more: at "high" it adds up three products of
    bfloat16 parts, which leaves 1/500 of the error (tests/benchmarks/prior_precision.py), at three
    times the cost, and an NVIDIA GPU takes TF32's 11 bits. "highest" is float32 in full, six
    products on a TPU, for what runs once. Half precision has no more bits to multiply, and a CPU
    computes in float32 by itself: what is traced for either stays as it is.
    """
    if jnp.dtype(dtype) != jnp.float32 or platform() == "cpu":
        return nullcontext()
    return jax.default_matmul_precision(precision)


def _predictor(
    unet: UNet2DConditionModel, schedule: Schedule
) -> Callable[[Weights, jax.Array, jax.Array, jax.Array], jax.Array]:
    def predict(weights: Weights, z_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        index = time_index(schedule, t)
        with float32_products(unet.dtype):
            prediction = unet.apply({"params": weights["unet"]}, z_t, index, text)
        return prediction.astype(jnp.float32)

    return predict


def _load_schedule(directory: Path) -> Schedule:
    config = read_config(directory, "scheduler_config.json")
    with blamed_on(directory / "scheduler_config.json"):
        return schedule_from_config(config)


def _check_fit(path: Path, with_vae: bool) -> None:
    """Raises PriorError unless the networks' configs belong together; reads no weights."""
    unet = build_module(path / "unet", UNet2DConditionModel)
    text = build_module(path / "text_encoder", CLIPTextModel)
    channels = 3
    if with_vae:
        channels = build_module(path / "vae", AutoencoderKL).latent_channels
    with blamed_on(path / "unet" / "config.json"):
        _sample_side(unet)
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


def _sample_side(unet: UNet2DConditionModel) -> int:
    if type(unet.sample_size) is not int or not 1 <= unet.sample_size <= LARGEST_PICTURE:
        raise PriorError(
            f"UNet2DConditionModel config: sample_size={unet.sample_size!r} is not supported, "
            f"only one number (a square) up to {LARGEST_PICTURE} is."
        )
    return unet.sample_size


def _has(index: dict[str, Any], name: str) -> bool:
    """model_index.json names a component as [library, class], or as [null, null]."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
