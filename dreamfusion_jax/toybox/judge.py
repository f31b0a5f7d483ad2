"""toybox-clip, the judge: names what an image shows, among everything that the toybox can say."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.diffusion.loading.weights import load_module
from dreamfusion_jax.diffusion.models.clip import CLIPModel
from dreamfusion_jax.diffusion.priors.prior import resize_bilinear
from dreamfusion_jax.toybox import captions, tokenizer
from dreamfusion_jax.toybox.image_ops import in_chunks
from dreamfusion_jax.toybox.judge_task import normalize, subject_captions

DIRECTORY = pathlib.Path(__file__).parent / "clip_weights"


class Judge(NamedTuple):
    """Images and the texts they are compared with, as unit vectors.

    Attributes:
      image_size: pixels a side of what it sees; `embed` resizes all else.
      embed: rgb [N, H, W, 3] in [0, 1] -> [N, P].
      subjects: [10 K, P] the (color, kind) captions in the order of captions.all_pairs().
      kinds: [K, P] the kinds without a color.
    """

    image_size: int
    embed: Callable[[np.ndarray], np.ndarray]
    subjects: np.ndarray
    kinds: np.ndarray

    def name_pair(self, rgb: np.ndarray) -> np.ndarray:
        """Returns the best (color, kind) captions' indices [N] in captions.all_pairs()."""
        return np.argmax(self.embed(rgb) @ self.subjects.T, axis=-1)

    def name_kind(self, rgb: np.ndarray) -> np.ndarray:
        """Returns the best kinds' indices [N] in captions.KINDS, colors not mentioned."""
        return np.argmax(self.embed(rgb) @ self.kinds.T, axis=-1)


def load_judge(directory: pathlib.Path = DIRECTORY) -> Judge:
    """Reads the judge from a transformers CLIPModel directory with its tokenizer."""
    model, params = load_module(directory, CLIPModel, jnp.float32)
    tokenize = load_tokenizer(directory, tokenizer.MAX_LENGTH)

    @jax.jit
    def embed_chunk(params: Any, rgb: jax.Array) -> jax.Array:
        pixels = normalize(resize_bilinear(rgb, model.vision_config.image_size))
        return model.apply({"params": params}, pixels, method="image_embeds")

    def embed(rgb: np.ndarray) -> np.ndarray:
        return in_chunks(lambda chunk: embed_chunk(params, chunk), rgb)

    @jax.jit
    def embed_text(params: Any, ids: jax.Array) -> jax.Array:
        return model.apply({"params": params}, ids, method="text_embeds")

    subjects = np.asarray(embed_text(params, tokenize(subject_captions())))
    count = len(captions.KINDS)
    return Judge(model.vision_config.image_size, embed, subjects[count:], subjects[:count])
