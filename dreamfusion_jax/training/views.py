"""What one view of one step looks at: everything random about it, from one key.

The key is made of the seed, the step and the view's index among all devices' views, so that a
resumed run, and a run on another number of devices, draws the same views.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax import prompts
from dreamfusion_jax.config import Config
from dreamfusion_jax.distillation import time_range
from dreamfusion_jax.nerf.cameras import CameraRanges, sample_camera
from dreamfusion_jax.nerf.scene import View
from dreamfusion_jax.settings import TrainConfig


class Draw(NamedTuple):
    """The random choices of one view.

    Attributes:
      view: camera, light, shading and background.
      text: what the view takes from the text table.
      t: [] diffusion time.
      noise_key: key of the noise eps.
      render_key: key of the jitter of the samples along the rays.
    """

    view: View
    text: prompts.ViewText
    t: jax.Array
    noise_key: jax.Array
    render_key: jax.Array


class Shading(NamedTuple):
    """The shading mode of one view; all []."""

    ambient: jax.Array
    diffuse: jax.Array
    textureless: jax.Array


def view_key(seed: int, step: jax.Array, view_index: jax.Array) -> jax.Array:
    """The key that decides all that is random about a view."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), view_index)


def draw_view(config: Config, step: jax.Array, view_index: jax.Array) -> Draw:
    """Draws camera, light, shading, background, t, and the keys of what is drawn later."""
    keys = jax.random.split(view_key(config.train.seed, step, view_index), 8)
    camera, azimuth_deg, elevation_deg, _ = sample_camera(
        keys[0], CameraRanges(**vars(config.camera))
    )
    shading = draw_shading(keys[1], step, config.train)
    view = View(
        camera=camera,
        light_position=draw_light(keys[2], camera.pose[:, 3], config.train),
        ambient=shading.ambient,
        diffuse=shading.diffuse,
        textureless=shading.textureless,
        background=jax.random.uniform(keys[3], (3,)),
        solid_background=(config.scene.background == "solid")
        | jax.random.bernoulli(keys[4], config.train.solid_background_share),
        with_normals=jnp.asarray(orientation_weight(config.train, step) > 0.0),
        half_size=step < config.train.half_size_steps,
    )
    text = prompts.view_text(
        text_options(config.train), azimuth_deg, elevation_deg, shading.textureless
    )
    prior = config.prior
    t_low, t_high = time_range(
        step, config.train.steps, prior.t_min, prior.t_max_start, prior.t_max_end
    )
    t = jax.random.uniform(keys[5], (), jnp.float32, t_low, t_high)
    return Draw(view, text, t, noise_key=keys[6], render_key=keys[7])


def orientation_weight(config: TrainConfig, step: jax.Array) -> jax.Array | float:
    """The orientation loss's weight [] at `step`, after a linear rise; 0.0 where it has none."""
    if not (config.orientation_start or config.orientation_weight):
        return 0.0
    rise = optax.linear_schedule(
        config.orientation_start, config.orientation_weight, config.orientation_steps
    )
    return jnp.asarray(rise(step))


def text_options(config: TrainConfig) -> prompts.TextOptions:
    """What the settings say of the words for views."""
    return prompts.TextOptions(
        config.view_words, config.interpolate_views, config.negative_views, config.perp_neg
    )


def draw_light(key: jax.Array, camera_position: jax.Array, config: TrainConfig) -> jax.Array:
    """A point light [3]: direction ~ N(camera position, I), distance uniform (paper, 3.2)."""
    direction_key, distance_key = jax.random.split(key)
    direction = camera_position + jax.random.normal(direction_key, (3,))
    low, high = config.light_distance
    distance = jax.random.uniform(distance_key, (), jnp.float32, low, high)
    return distance * direction / jnp.linalg.norm(direction)


def draw_shading(key: jax.Array, step: jax.Array, config: TrainConfig) -> Shading:
    """Unlit albedo at first; later lit with `lit_probability`, some of that textureless.

    A textureless view is always lit: a white silhouette alone would say nothing of the shape.
    """
    lit_key, textureless_key, ambient_key = jax.random.split(key, 3)
    lit = jax.random.bernoulli(lit_key, config.lit_probability)
    lit = lit & (step >= config.shading_start_step)
    textureless = lit & jax.random.bernoulli(textureless_key, config.textureless_probability)
    low, high = config.ambient
    ambient = jax.random.uniform(ambient_key, (), jnp.float32, low, high)
    ambient = jnp.where(lit, ambient, 1.0)
    return Shading(ambient, 1.0 - ambient, textureless)
