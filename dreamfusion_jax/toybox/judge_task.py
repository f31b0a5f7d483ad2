"""What toybox-clip, the judge, learns: to tell every caption of the toybox from every other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.models.clip import IMAGE_MEAN, IMAGE_STD, CLIPModel
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.dataset import LabeledImages
from dreamfusion_jax.toybox.image_ops import augment, grid, mirror
from dreamfusion_jax.toybox.tasks import Params, Task

GRAY_SHARE = 0.2  # of the images lose their colors, and with them the caption's
SPHERE_SHARE = 1 / 16  # of a batch are plain spheres
MAX_LOG_SCALE = 4.6
KINDS, COLORS = len(captions.KINDS), len(captions.COLORS)


class JudgeBatch(NamedTuple):
    """Images, of which the last ones are spheres.

    Attributes:
      image: [B, H, W, 3] uint8.
      subject: [B, 11 K] how likely each of `subject_captions` is; the rows sum to 1.
    """

    image: Any
    subject: Any


def judge_task(
    model: CLIPModel,
    images: LabeledImages,
    spheres: LabeledImages,
    tokenize: Callable[[list[str]], np.ndarray],
) -> Task:
    """Contrasts each image with every subject's caption.

    The texts are the whole of what can be asked, so there are no false negatives: all (color,
    kind) captions and the kinds alone, but for the held-out pairs, which could only ever be wrong
    answers.

    Args:
      model: both towers.
      images: what to name.
      spheres: images of plain spheres (`dataset.plain_spheres`). Every kind is to be equally
        likely, or a colored ball, the commonest failure of a distillation, would count as
        whatever kind is roundest.
      tokenize: captions -> ids [B, L].
    """
    subject_ids = jnp.asarray(_without_padding(tokenize(subject_captions())))
    hidden = captions.held_out_pairs()
    asked = np.array([True] * KINDS + [pair not in hidden for pair in captions.all_pairs()])

    @jax.jit
    def init(key: jax.Array) -> Params:
        return model.init(key, model.dummy_inputs()[0], subject_ids[:1])["params"]

    def batch(rng: np.random.Generator, size: int, step: int = 0) -> JudgeBatch:
        del step
        balls = round(SPHERE_SHARE * size)
        shown = images.take(rng.integers(images.count, size=size - balls))
        plain = spheres.take(rng.integers(spheres.count, size=balls))
        image = np.concatenate([shown.image, plain.image])
        color = np.concatenate([shown.color, plain.color]).astype(np.int32)
        image, _ = mirror(rng, image)
        image, color = _fade(rng, image, color)
        subject = _subjects(color, shown.kind) * asked
        subject /= subject.sum(axis=1, keepdims=True)
        return JudgeBatch(augment(rng, image), subject)

    def loss(params: Params, batch: JudgeBatch, key: jax.Array) -> tuple[jax.Array, dict]:
        del key

        def embed(x: jax.Array, tower: str) -> jax.Array:
            return model.apply({"params": params}, x, method=f"{tower}_embeds")

        scale = jnp.exp(jnp.minimum(params["logit_scale"], MAX_LOG_SCALE))
        seen = embed(normalize(batch.image / 255.0), "image")
        logits = jnp.where(asked, scale * seen @ embed(subject_ids, "text").T, -1e9)
        loss = -jnp.mean(jnp.sum(batch.subject * jax.nn.log_softmax(logits), axis=-1))
        one_answer = jnp.max(batch.subject, axis=-1) == 1.0
        right = jnp.argmax(logits, axis=-1) == jnp.argmax(batch.subject, axis=-1)
        return loss, {"accuracy": jnp.sum(right * one_answer) / jnp.sum(one_answer)}

    def preview(params: Params) -> np.ndarray:
        del params
        return grid(batch(np.random.default_rng(0), 64).image, columns=8)

    return Task(init, batch, loss, preview)


def subject_captions() -> list[str]:
    """Lists the kinds without a color ("a chair"), then all pairs ("a red chair")."""
    subjects = [captions.Subject(kind, None, None) for kind in captions.KINDS]
    subjects += [captions.Subject(kind, color, None) for color, kind in captions.all_pairs()]
    return [captions.with_article(f"a {captions.subject_phrase(subject)}") for subject in subjects]


def normalize(rgb: jax.Array) -> jax.Array:
    """Normalizes RGB in [0, 1] as the image processor of the original CLIP does."""
    return (rgb - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)


def _fade(
    rng: np.random.Generator, image: np.ndarray, color: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes some images' colors away, which then show a kind of no color (-1)."""
    faded = rng.random(len(image)) < GRAY_SHARE
    luminance = (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    image = np.where(faded[:, None, None, None], luminance[..., None], image)
    return image, np.where(faded, -1, color)


def _subjects(color: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Maps color [B] from -1, kind [N <= B] to [B, 11 K]: a subject, beyond N all of a color.

    `subject_captions` lists the gray kinds first, then color by color.
    """
    subject = np.zeros((len(color), 1 + COLORS, KINDS), np.float32)
    row, shown = np.arange(len(color)), len(kind)
    subject[row[:shown], color[:shown] + 1, kind] = 1.0
    subject[row[shown:], color[shown:] + 1] = 1.0
    return subject.reshape(len(color), -1)


def _without_padding(ids: np.ndarray) -> np.ndarray:
    """Drops the columns of ids [B, L] that only repeat the end mark, pooled where it first is.

    Attention is causal, so what stood behind the mark changed nothing.
    """
    words = np.flatnonzero((ids != ids[:, -1:]).any(axis=0))
    return ids[:, : words[-1] + 2]
