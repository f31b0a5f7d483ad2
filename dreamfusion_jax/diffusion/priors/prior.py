"""A frozen text-to-image diffusion model as pure functions, and what it is conditioned on.

Several kinds, one interface: latent (any Stable Diffusion in diffusers' layout, the embedded toybox
among them), pixel (a pipeline without a VAE), and analytic (a Gaussian whose noise estimate is
known in closed form: the oracle of the tests).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from dreamfusion_jax.diffusion.schedule import Schedule

PriorParams = Any  # a pytree of arrays, passed as an argument and never closed over


class Condition(NamedTuple):
    """What a network is conditioned on; every leaf [B, ...].

    Only its prior reads the fields. All other code mixes, stacks and repeats it by tree maps.

    Attributes:
      tokens: [B, L, D] for cross-attention.
      vector: [B, V] to be embedded and added to the time's embedding, or None.
      image: [B, h, w, c] to be concatenated to z_t, or None.
    """

    tokens: jax.Array
    vector: jax.Array | None = None
    image: jax.Array | None = None


class Pose(NamedTuple):
    """The camera of a view; every leaf may have leading batch axes.

    Attributes:
      camera_to_world: [..., 3, 4]; the columns are right, up, backward and the position.
      fov_deg: [...] horizontal field of view.
      azimuth_deg, elevation_deg: [...] the camera's angles before any jitter.
      distance: [...] from the origin.
    """

    camera_to_world: jax.Array
    fov_deg: jax.Array
    azimuth_deg: jax.Array
    elevation_deg: jax.Array
    distance: jax.Array


EncodeText = Callable[[Sequence[str]], Condition]
PredictVariance = Callable[
    [PriorParams, jax.Array, jax.Array, Condition], tuple[jax.Array, jax.Array]
]


def without_pose(condition: Condition, pose: Pose) -> Condition:
    """Returns the condition unchanged: the network takes no camera."""
    del pose
    return condition


class Prior(NamedTuple):
    """A frozen prior; its params travel beside it as an argument.

    Attributes:
      image_size: side in pixels of the square RGB image that it takes.
      latent_shape: [h, w, c] of what it denoises.
      schedule: t -> alpha, sigma, and what `predict` returns: noise, velocity or clean latent.
      encode_text: prompts -> Condition of B; the host calls it before the first step.
      encode: params, rgb [B, H, W, 3] in [0, 1] of any size, key -> z [B, h, w, c]. With a key the
        latent is sampled, with None it is the mean.
      decode: params, z [B, h, w, c] -> rgb [B, image_size, image_size, 3] in [0, 1].
      predict: params, z_t [B, h, w, c], t [B], Condition of B -> the network's own prediction
        [B, h, w, c], float32. Not yet the noise: at zero signal a velocity still determines z,
        while the noise that it implies does not. `schedule.to_epsilon` and others convert.
      joint_views: how many views the network denoises together; those of a group are consecutive in
        the batch.
      with_pose: Condition and Pose of B -> the condition of those cameras.
      predict_variance: as `predict`, but returns also what the network says of the variance of a
        sampler's step, [B, h, w, c] in [-1, 1]; None: nothing.
      text_digest: -> the digest of what encodes texts, where that is so costly that its results are
        worth keeping on disk; None: it is not.
    """

    image_size: int
    latent_shape: tuple[int, int, int]
    schedule: Schedule
    encode_text: EncodeText
    encode: Callable[[PriorParams, jax.Array, jax.Array | None], jax.Array]
    decode: Callable[[PriorParams, jax.Array], jax.Array]
    predict: Callable[[PriorParams, jax.Array, jax.Array, Condition], jax.Array]
    joint_views: int = 1
    with_pose: Callable[[Condition, Pose], Condition] = without_pose
    predict_variance: PredictVariance | None = None
    text_digest: Callable[[], str] | None = None


def resize_bilinear(rgb: jax.Array, size: int) -> jax.Array:
    """Resizes rgb [B, H, W, 3] to [B, size, size, 3], with antialiasing where it shrinks."""
    if rgb.shape[1:3] == (size, size):
        return rgb
    return jax.image.resize(rgb, (rgb.shape[0], size, size, rgb.shape[3]), "bilinear")
