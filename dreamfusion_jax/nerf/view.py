"""A view: camera, light, shading and background of one image of a scene."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.cameras import Camera


class View(NamedTuple):
    """Camera, light, shading and background of one image of a scene.

    Attributes:
      camera: the camera that takes the image.
      light_position: [3].
      ambient: [] l_ambient.
      diffuse: [] l_diffuse; exactly 0 means unlit, and then normals are computed only if
        `with_normals` is true.
      textureless: [] bool; replace the albedo by 1.
      background: [3] solid color.
      solid_background: [] bool; use `background` even if the scene has a learned one.
      with_normals: [] bool; compute normals although the view is unlit, for the orientation loss.
    """

    camera: Camera
    light_position: jax.Array
    ambient: jax.Array
    diffuse: jax.Array
    textureless: jax.Array
    background: jax.Array
    solid_background: jax.Array
    with_normals: jax.Array


def albedo_view(camera: Camera, background: jax.Array) -> View:
    """Returns the unlit view, albedo only, over a solid `background` [3]."""
    return _view(camera, camera.pose[:, 3], background, ambient=1.0, diffuse=0.0)


def lit_view(
    camera: Camera,
    background: jax.Array,
    light_position: jax.Array | None = None,
    textureless: bool = False,
    ambient: float = 0.3,
    diffuse: float = 0.7,
) -> View:
    """Returns a view under a point light over a solid `background` [3].

    Args:
      light_position: [3]; None places the light a little above the camera.
      textureless: replace the albedo by 1.
      ambient: l_ambient.
      diffuse: l_diffuse.
    """
    if light_position is None:
        position, up = camera.pose[:, 3], camera.pose[:, 1]
        light_position = position + 0.3 * jnp.linalg.norm(position) * up
    return _view(camera, light_position, background, ambient, diffuse, textureless)


def _view(
    camera: Camera,
    light_position: jax.Array,
    background: jax.Array,
    ambient: float,
    diffuse: float,
    textureless: bool = False,
) -> View:
    return View(
        camera=camera,
        light_position=jnp.asarray(light_position, jnp.float32),
        ambient=jnp.float32(ambient),
        diffuse=jnp.float32(diffuse),
        textureless=jnp.asarray(textureless),
        background=jnp.asarray(background, jnp.float32),
        solid_background=jnp.asarray(True),
        with_normals=jnp.asarray(False),
    )
