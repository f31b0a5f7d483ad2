"""The azimuth classifier: names the side from which an image shows an object of a known kind.

Whether a prior obeys the view words is measured with it (`evaluate --measure=prior`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.loading.options import module_defaults, module_options
from dreamfusion_jax.diffusion.loading.weights import load_module
from dreamfusion_jax.diffusion.models.layers import GroupNorm, Linear, conv3x3
from dreamfusion_jax.diffusion.priors.prior import resize_bilinear
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.dataset import LabeledImages
from dreamfusion_jax.toybox.image_ops import augment, grid, in_chunks, mirror, to_signed
from dreamfusion_jax.toybox.tasks import Params, Task

DIRECTORY = pathlib.Path(__file__).parent / "azimuth_weights"
KINDS, SIDES = len(captions.KINDS), len(captions.AZIMUTH_PHRASES)
_CELLS = 2  # across and down: coarse places, such as a head's, are kept until the end
# Their front is the mirror image of their back, and not their left of their right.
_SAME_FROM_BEHIND = np.isin(captions.KINDS, ("mug", "teapot"))


class AzimuthClassifier(nn.Module):
    """A small residual network: a stage of each width, each at half the resolution before."""

    widths: tuple[int, ...] = (24, 48, 96)
    norm_num_groups: int = 8
    image_size: int = 64

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Any = jnp.float32) -> AzimuthClassifier:
        """Reads the attributes of the same names; computes in float32 whatever `dtype`."""
        del dtype
        return cls(**module_options("AzimuthClassifier", config, module_defaults(cls), {}))

    def dummy_inputs(self) -> tuple[jax.Array]:
        return (jnp.zeros((1, self.image_size, self.image_size, 3)),)

    @nn.compact
    def __call__(self, rgb: jax.Array) -> jax.Array:
        """Maps rgb [B, H, W, 3] in [-1, 1] to logits [B, K, 8]: each kind's sides."""
        x = rgb
        for i, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), (2, 2), padding=1, name=f"down_{i}")(x)
            h = self._norm(f"norm1_{i}", x)
            h = self._norm(f"norm2_{i}", conv3x3(width, f"conv1_{i}", jnp.float32)(h))
            x = x + conv3x3(width, f"conv2_{i}", jnp.float32)(h)
        x = self._norm("norm_out", x)
        batch, height, width, channels = x.shape
        cells = x.reshape(batch, _CELLS, height // _CELLS, _CELLS, width // _CELLS, channels)
        features = jnp.mean(cells, axis=(2, 4)).reshape(batch, -1)
        return Linear(KINDS * SIDES, name="sides")(features).reshape(batch, KINDS, SIDES)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.silu(GroupNorm(self.norm_num_groups, 1e-5, name=name)(x))


# rgb [N, H, W, 3] in [0, 1], kind [N] -> [N] indices into captions.AZIMUTH_PHRASES
NameSide = Callable[[np.ndarray, np.ndarray], np.ndarray]


class AzimuthBatch(NamedTuple):
    """image [B, H, W, 3] uint8; kind [B], side [B] indices into KINDS and AZIMUTH_PHRASES."""

    image: Any
    kind: Any
    side: Any


def azimuth_task(classifier: AzimuthClassifier, images: LabeledImages) -> Task:
    """Names the side of the kind shown, among eight; only kinds with a front are shown."""
    fronted = images.take(images.with_front())

    @jax.jit
    def init(key: jax.Array) -> Params:
        return classifier.init(key, *classifier.dummy_inputs())["params"]

    def batch(rng: np.random.Generator, size: int, step: int = 0) -> AzimuthBatch:
        del step
        shown = fronted.take(rng.integers(fronted.count, size=size))
        image, mirrored = mirror(rng, shown.image)
        side = azimuth_of(shown)
        side = np.where(mirrored, mirrored_azimuth(shown.kind, side), side)
        kind = shown.kind.astype(np.int32)
        return AzimuthBatch(augment(rng, image), kind, side)

    def loss(params: Params, batch: AzimuthBatch, key: jax.Array) -> tuple[jax.Array, dict]:
        del key
        logits = classifier.apply({"params": params}, to_signed(batch.image))
        logits = logits[jnp.arange(len(batch.kind)), batch.kind]
        right = jax.nn.one_hot(batch.side, SIDES) * jax.nn.log_softmax(logits)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.side)
        return -jnp.mean(jnp.sum(right, axis=-1)), {"accuracy": accuracy}

    def preview(params: Params) -> np.ndarray:
        del params
        return grid(batch(np.random.default_rng(0), 64).image, columns=8)

    return Task(init, batch, loss, preview)


def load_azimuth_classifier(directory: pathlib.Path = DIRECTORY) -> NameSide:
    """Reads the classifier that the package carries, or another."""
    classifier, params = load_module(directory, AzimuthClassifier, jnp.float32)

    @jax.jit
    def logits(params: Params, rgb: jax.Array) -> jax.Array:
        shrunk = resize_bilinear(rgb, classifier.image_size)
        return classifier.apply({"params": params}, 2.0 * shrunk - 1.0)

    def classify_azimuth(rgb: np.ndarray, kind: np.ndarray) -> np.ndarray:
        sides = in_chunks(lambda chunk: logits(params, chunk), rgb)
        return np.argmax(sides[np.arange(len(rgb)), kind], axis=-1)

    return classify_azimuth


def azimuth_of(images: LabeledImages) -> np.ndarray:
    """Returns which of the eight sides each image shows [N]."""
    return np.asarray(captions.azimuth_index(images.azimuth_deg))


def mirrored_azimuth(kind: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the side [N] that the mirror image of a image of `side` shows."""
    return np.where(_SAME_FROM_BEHIND[kind], SIDES // 2 - side, -side) % SIDES
