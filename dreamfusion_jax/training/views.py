"""Draws all random choices of one view of one step from one key.

The key is made of the seed, the step and the view's index among all devices' views, so that a
resumed run, and a run on another number of devices, draws the same views. Views that a prior
denoises together share the first one's key: its time, light, background and camera, except for the
azimuth.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.prior import Pose
from dreamfusion_jax.diffusion.schedule import STABLE_DIFFUSION, Schedule
from dreamfusion_jax.distillation.timesteps import time_range
from dreamfusion_jax.nerf.cameras import CameraDraw, fov_from_focal, sample_camera
from dreamfusion_jax.nerf.view import View
from dreamfusion_jax.training.options import TrainOptions


class Draw(NamedTuple):
    """The random choices of one view.

    Attributes:
      view: camera, light, shading and background.
      pose: of the camera, by which the view's words are chosen.
      t: [] diffusion time.
      noise_key: key of the noise eps.
      render_key: key of the jitter of the samples along the rays.
      half_size: [] bool, render at half the side and enlarge.
    """

    view: View
    pose: Pose
    t: jax.Array
    noise_key: jax.Array
    render_key: jax.Array
    half_size: jax.Array


class Shading(NamedTuple):
    """The shading mode of one view; all []."""

    ambient: jax.Array
    diffuse: jax.Array
    textureless: jax.Array


def view_key(seed: int, step: jax.Array, view_index: jax.Array) -> jax.Array:
    """Returns the key of all random choices of a view."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), view_index)


def draw_view(
    config: Config,
    step: jax.Array,
    view_index: jax.Array,
    joint_views: int = 1,
    schedule: Schedule = STABLE_DIFFUSION,
) -> Draw:
    """Draws camera, light, shading, background and t, and makes keys for noise and jitter.

    Args:
      joint_views: how many consecutive views form a group: their cameras are evenly spaced around
        the object; except for noise and jitter, all else is equal.
      schedule: the prior's noise schedule, by which DreamTime weighs the times.
    """
    group, place = view_index // joint_views, view_index % joint_views
    first = jax.random.split(view_key(config.train.seed, step, group * joint_views), 8)
    own = jax.random.split(view_key(config.train.seed, step, view_index), 8)
    front = sample_camera(first[0], config.camera)
    drawn = front
    if joint_views > 1:
        drawn = sample_camera(first[0], config.camera, place * (360.0 / joint_views))
    shading = draw_shading(first[1], step, config.train)
    view = View(
        camera=drawn.camera,
        light_position=draw_light(first[2], front.camera.pose[:, 3], config.train),
        ambient=shading.ambient,
        diffuse=shading.diffuse,
        textureless=shading.textureless,
        background=jax.random.uniform(first[3], (3,)),
        solid_background=(config.scene.background == "solid")
        | jax.random.bernoulli(first[4], config.train.solid_background_share),
        with_normals=jnp.asarray(orientation_weight(config.train, step) > 0.0),
    )
    t_low, t_high = time_range(step, config.train.steps, config.distillation, schedule)
    t = jax.random.uniform(first[5], (), jnp.float32, t_low, t_high)
    half_size = jnp.asarray(step < config.train.half_size_steps)
    return Draw(view, pose_of(drawn), t, own[6], own[7], half_size)


def pose_of(drawn: CameraDraw) -> Pose:
    """Returns the pose of a drawn camera, as priors take it."""
    camera = drawn.camera
    return Pose(
        camera_to_world=camera.pose,
        fov_deg=fov_from_focal(camera.focal),
        azimuth_deg=drawn.azimuth_deg,
        elevation_deg=drawn.elevation_deg,
        distance=jnp.linalg.norm(camera.pose[..., 3], axis=-1),
    )


def orientation_weight(config: TrainOptions, step: jax.Array) -> jax.Array | float:
    """Returns the orientation loss's weight [] at `step`, of a linear rise; 0.0 without one."""
    if not (config.orientation_start or config.orientation_weight):
        return 0.0
    rise = optax.linear_schedule(
        config.orientation_start, config.orientation_weight, config.orientation_steps
    )
    return jnp.asarray(rise(step))


def draw_light(key: jax.Array, camera_position: jax.Array, config: TrainOptions) -> jax.Array:
    """Draws a point light [3]: direction ~ N(camera position, I), uniform distance (paper, 3.2)."""
    direction_key, distance_key = jax.random.split(key)
    direction = camera_position + jax.random.normal(direction_key, (3,))
    low, high = config.light_distance
    distance = jax.random.uniform(distance_key, (), jnp.float32, low, high)
    return distance * direction / jnp.linalg.norm(direction)


def draw_shading(key: jax.Array, step: jax.Array, config: TrainOptions) -> Shading:
    """Draws unlit albedo at first; later lit with `lit_probability`, some of it textureless.

    A textureless view is always lit: a white silhouette alone would not show the shape.
    """
    lit_key, textureless_key, ambient_key = jax.random.split(key, 3)
    lit = jax.random.bernoulli(lit_key, config.lit_probability)
    lit = lit & (step >= config.shading_start_step)
    textureless = lit & jax.random.bernoulli(textureless_key, config.textureless_probability)
    low, high = config.ambient
    ambient = jax.random.uniform(ambient_key, (), jnp.float32, low, high)
    ambient = jnp.where(lit, ambient, 1.0)
    return Shading(ambient, 1.0 - ambient, textureless)
