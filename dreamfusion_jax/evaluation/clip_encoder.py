"""A CLIPModel as transformers saves it: from images and texts to comparable embeddings.

The networks are in diffusion/models/clip.py, the preprocessing is here. Images are processed as by
transformers' CLIPImageProcessor, with the same library: the shorter side resized (bicubic), the
center cropped, normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dreamfusion_jax.diffusion.loading.model_files import read_config
from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.loading.weights import (
    load_module,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.models.clip import IMAGE_MEAN, IMAGE_STD, CLIPModel
from dreamfusion_jax.rendering.images import to_uint8
from dreamfusion_jax.runtime.errors import PriorError
from dreamfusion_jax.toybox.image_ops import in_chunks

_CHUNK = 8  # images at once, as many as azimuths
_PREPROCESSOR = "preprocessor_config.json"


class ClipEncoder(NamedTuple):
    """Both towers of a CLIP.

    Attributes:
      tokenize: texts -> ids [N, L].
      embed_texts: ids [N, L] -> [N, P] unit vectors.
      embed_images: rgb [N, H, W, 3] in [0, 1] -> [N, P] unit vectors.
    """

    tokenize: Callable[[Sequence[str]], np.ndarray]
    embed_texts: Callable[[np.ndarray], np.ndarray]
    embed_images: Callable[[np.ndarray], np.ndarray]


class Preprocessing(NamedTuple):
    """Preprocessing of an image: a square of `size` pixels, less `mean`, divided by `std`."""

    size: int
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Processes an image: [H, W, 3] uint8 -> [size, size, 3] float32."""
        height, width = image.shape[:2]
        shorter = min(height, width)
        if shorter != self.size:
            height, width = (int(self.size * side / shorter) for side in (height, width))
            resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            image = np.asarray(resized)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        image = image[top : top + self.size, left : left + self.size].astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (image / np.float32(255.0) - mean) / std


def load_clip(directory: Path) -> ClipEncoder:
    """Loads config.json, safetensors, the tokenizer and, if present, preprocessor_config.json.

    Everything is computed in float32, so that scores do not depend on the machine.

    Raises:
      PriorError: the directory is not a CLIPModel; the message names the file.
    """
    check_layout(directory)
    model, params = load_module(directory, CLIPModel, jnp.float32, place=jax.device_put)
    text, vision = model.text_config, model.vision_config
    preprocess = read_preprocessing(directory, vision.image_size)
    tokenize = load_tokenizer(directory, text.max_position_embeddings, text.vocab_size)

    def embed(method: str) -> Callable[[np.ndarray], np.ndarray]:
        @jax.jit
        def chunk_embeds(params: Any, inputs: jax.Array) -> jax.Array:
            return model.apply({"params": params}, inputs, method=method)

        def embeds(inputs: np.ndarray) -> np.ndarray:
            with jax.default_matmul_precision("float32"):
                return in_chunks(lambda chunk: chunk_embeds(params, chunk), inputs, _CHUNK)

        return embeds

    embed_pixels = embed("image_embeds")

    def embed_images(rgb: np.ndarray) -> np.ndarray:
        return embed_pixels(np.stack([preprocess(image) for image in to_uint8(rgb)]))

    return ClipEncoder(tokenize, embed("text_embeds"), embed_images)


def read_preprocessing(directory: Path, size: int) -> Preprocessing:
    """Reads preprocessor_config.json; where it is missing, returns what the first CLIPs use."""
    if not (directory / _PREPROCESSOR).exists():
        return Preprocessing(size)
    config = read_config(directory, _PREPROCESSOR)
    with reraise_as_prior_error(directory / _PREPROCESSOR):
        return _preprocessing(config, size)


def _preprocessing(config: Mapping[str, Any], size: int) -> Preprocessing:
    """Builds the preprocessing. Raises a PriorError for options that it does not support."""
    supported = {
        "do_resize": (True,),
        "do_center_crop": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "resample": (int(Image.Resampling.BICUBIC),),
        "rescale_factor": (1.0 / 255.0,),
        # Older versions of the file hold a number.
        "size": (size, {"shortest_edge": size}, {"height": size, "width": size}),
        "crop_size": (size, {"height": size, "width": size}),
    }
    for key, allowed in supported.items():
        if config.get(key, allowed[0]) not in allowed:
            raise PriorError(
                f"{key}={config[key]!r:.200} is not supported, only {allowed[0]!r} is."
            )
    mean, std = (
        tuple(float(x) for x in config.get(key, default))
        for key, default in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD))
    )
    if not (len(mean) == len(std) == 3 and min(std) > 0.0):
        raise PriorError("image_mean and image_std must be three numbers each, std positive.")
    return Preprocessing(size, mean, std)


def check_layout(directory: Path) -> None:
    """Raises a PriorError where a directory does not have the layout of a CLIPModel."""
    layout = "a CLIPModel as transformers saves one (config.json, model.safetensors, tokenizer)"
    if not (directory / "config.json").is_file():
        raise PriorError(f"--judge: {directory} holds no config.json; it must hold {layout}.")
    kind = read_config(directory).get("model_type")
    if kind != "clip":
        raise PriorError(
            f"--judge: {directory / 'config.json'} is of model_type {kind!r:.100}, where 'clip' is"
            f" needed: {layout}."
        )
