"""Cameras on a sphere around the origin, and the rays of their pixels.

World: right-handed, z up, the object's front faces +x. Azimuth 0 looks at the front, positive
azimuth turns counter-clockwise seen from above, elevation 90 degrees looks straight down. A camera
looks along its own -z axis with x right and y up (the OpenGL convention).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamfusion_jax.runtime.settings import Range, setting


class Camera(NamedTuple):
    """A pinhole camera; every leaf may carry leading batch axes.

    Attributes:
      pose: [..., 3, 4] camera-to-world; the columns are right, up, backward and the position.
      focal: [...] focal length in units of the image's width.
      center: [..., 2] the principal point, where the optical axis meets the image plane: right of
        and above the image's middle, in image widths.
    """

    pose: jax.Array
    focal: jax.Array
    center: jax.Array


@dataclasses.dataclass(frozen=True)
class CameraRanges:
    """Ranges that `sample_camera` draws from; the defaults are those of the toybox's data."""

    distance: Range = setting(
        (2.3, 3.2), "range of distances from the origin (paper: 1,1.5)", 1e-2, 1e3
    )
    relative_distance: bool = setting(
        False,
        "count distances from the origin in those at which a sphere of radius 1 fills the view:"
        " times 1 / tan(fov / 2) (MVDream)",
    )
    fov_deg: Range = setting((40.0, 55.0), "range of fields of view, in degrees", 1, 170)
    elevation_deg: Range = setting(
        (-10.0, 75.0), "range of elevations, in degrees (paper: -10,90)", -90, 90
    )
    azimuth_deg: Range = setting(
        (0.0, 360.0), "range of azimuths, in degrees (paper: 0,360)", -360, 360
    )
    uniform_area_prob: float = setting(
        0.0,
        "share of cameras whose elevation is uniform by area, not by angle, between the same bounds"
        " (paper: 0.5, on the upper half-sphere)",
        0,
        1,
        former_name="area_share",
    )
    focal_multiplier: Range = setting(
        (0.0, 0.0),
        "range of focal lengths in image widths (paper: 0.7,1.35; 0: from --fov_deg)",
        0,
        100,
    )
    position_jitter: float = setting(
        0.0, "each coordinate of a camera's position is moved by up to this (paper: 0.1)", 0, 1e3
    )
    look_at_std: float = setting(
        0.0, "standard deviation, in each coordinate, of the look-at point (paper: 0.2)", 0, 1e3
    )
    up_std: float = setting(
        0.0, "standard deviation of the up vector about the vertical (paper: 0.02)", 0, 1
    )


class CameraDraw(NamedTuple):
    """A drawn camera with the angles that choose its view words.

    The angles are those before the jitter; `target` [..., 3] is the look-at point.
    """

    camera: Camera
    azimuth_deg: jax.Array
    elevation_deg: jax.Array
    target: jax.Array


class Rays(NamedTuple):
    """One ray per pixel.

    Attributes:
      origin: [..., 3] start of the ray in world coordinates.
      direction: [..., 3] unit vector.
      radius: [..., 1] the cone's radius at unit distance, such that its cross-section has the
        variance of a pixel: 2 / sqrt(12) times the pixel's width (mip-NeRF, Barron et al. 2021).
    """

    origin: jax.Array
    direction: jax.Array
    radius: jax.Array


def focal_from_fov(fov_deg: jax.Array | float) -> jax.Array:
    """Returns the focal length, in image widths, of a horizontal field of view in degrees."""
    return 0.5 / jnp.tan(0.5 * jnp.deg2rad(jnp.asarray(fov_deg, jnp.float32)))


def fov_from_focal(focal: jax.Array) -> jax.Array:
    """Returns the horizontal field of view, in degrees, of a focal length in image widths."""
    return 2.0 * jnp.rad2deg(jnp.arctan(0.5 / focal))


def orbit_position(
    azimuth_deg: jax.Array | float, elevation_deg: jax.Array | float, distance: jax.Array | float
) -> jax.Array:
    """Returns the point [..., 3] at the given angles (degrees) and distance from the origin."""
    azimuth = jnp.deg2rad(jnp.asarray(azimuth_deg, jnp.float32))
    elevation = jnp.deg2rad(jnp.asarray(elevation_deg, jnp.float32))
    unit = jnp.stack(
        [
            jnp.cos(elevation) * jnp.cos(azimuth),
            jnp.cos(elevation) * jnp.sin(azimuth),
            jnp.sin(elevation),
        ],
        axis=-1,
    )
    return jnp.asarray(distance, jnp.float32)[..., None] * unit


def look_at(position: jax.Array, target: jax.Array, up: jax.Array) -> jax.Array:
    """Returns the pose [..., 3, 4] at `position` looking at `target`; all arguments are [..., 3].

    Where the line of sight is parallel to `up` (an overhead view), the image's upper edge points
    away from the object's front, as it does for every lower camera at azimuth 0.
    """
    backward = _normalize(position - target)
    right = jnp.cross(up, backward)
    parallel = jnp.sum(right**2, axis=-1, keepdims=True) < 1e-8
    right = _normalize(jnp.where(parallel, jnp.array([0.0, 1.0, 0.0]), right))
    return jnp.stack([right, jnp.cross(backward, right), backward, position], axis=-1)


def orbit_camera(
    azimuth_deg: jax.Array | float,
    elevation_deg: jax.Array | float,
    distance: jax.Array | float,
    fov_deg: jax.Array | float,
) -> Camera:
    """Returns a camera on the sphere of radius `distance`, looking at the origin; degrees."""
    position = orbit_position(azimuth_deg, elevation_deg, distance)
    up = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), position.shape)
    pose = look_at(position, jnp.zeros_like(position), up)
    focal = jnp.broadcast_to(focal_from_fov(fov_deg), position.shape[:-1])
    return Camera(pose, focal, jnp.zeros((*position.shape[:-1], 2)))


def sample_camera(
    key: jax.Array, ranges: CameraRanges, turn_deg: jax.Array | None = None
) -> CameraDraw:
    """Draws one camera (Poole et al. 2022, section 3.1 and appendix A.2). Azimuths in [0, 360).

    Args:
      turn_deg: [] added to the azimuth after the draw; None: nothing.
    """
    keys = jax.random.split(key, 4)
    azimuth_deg = _uniform(keys[0], ranges.azimuth_deg) % 360.0
    if turn_deg is not None:
        azimuth_deg = (azimuth_deg + turn_deg) % 360.0
    elevation_deg = _sample_elevation(keys[1], ranges)
    distance = _uniform(keys[2], ranges.distance)
    if ranges.focal_multiplier[1] > 0.0:
        focal = _uniform(keys[3], ranges.focal_multiplier)
    else:
        focal = focal_from_fov(_uniform(keys[3], ranges.fov_deg))
    if ranges.relative_distance:
        distance = distance * 2.0 * focal
    jitter_key, target_key, up_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    jitter = ranges.position_jitter * jax.random.uniform(jitter_key, (3,), minval=-1.0, maxval=1.0)
    position = orbit_position(azimuth_deg, elevation_deg, distance) + jitter
    target = ranges.look_at_std * jax.random.normal(target_key, (3,))
    up = jnp.array([0.0, 0.0, 1.0]) + ranges.up_std * jax.random.normal(up_key, (3,))
    camera = Camera(look_at(position, target, up), focal, jnp.zeros(2))
    return CameraDraw(camera, azimuth_deg, elevation_deg, target)


def _sample_elevation(key: jax.Array, ranges: CameraRanges) -> jax.Array:
    """Draws an angle [] uniformly, or with probability `uniform_area_prob` uniformly by area.

    The area of a band of a sphere is proportional to its height (Archimedes), hence the sine.
    """
    by_angle = _uniform(key, ranges.elevation_deg)
    choice_key, area_key = jax.random.split(jax.random.fold_in(key, 1))
    low, high = ranges.elevation_deg
    # On the host: a device's sine of 90 degrees might exceed 1, where arcsin is NaN.
    sines = math.sin(math.radians(low)), math.sin(math.radians(high))
    by_area = jnp.rad2deg(jnp.arcsin(_uniform(area_key, sines)))
    by_area = jnp.clip(by_area, low, high)  # Rounding may exceed the bounds.
    return jnp.where(jax.random.bernoulli(choice_key, ranges.uniform_area_prob), by_area, by_angle)


def _uniform(key: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    return jax.random.uniform(key, (), jnp.float32, bounds[0], bounds[1])


def pixel_rays(camera: Camera, height: int, width: int) -> Rays:
    """Returns the rays [height, width] through the pixel centers of one camera (no batch axis).

    Row 0 is the upper edge of the image, column 0 its left edge; pixels are square.
    """
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5) / width - 0.5
    y = (0.5 * height - jnp.arange(height, dtype=jnp.float32) - 0.5) / width
    x, y = jnp.meshgrid(x - camera.center[0], y - camera.center[1], indexing="xy")
    in_camera = jnp.stack([x, y, jnp.broadcast_to(-camera.focal, x.shape)], axis=-1)
    # By default a TPU would round both to bfloat16, and rays would miss their pixels.
    in_world = jnp.matmul(in_camera, camera.pose[:, :3].T, precision=jax.lax.Precision.HIGHEST)
    length = jnp.linalg.norm(in_world, axis=-1, keepdims=True)
    # One pixel is 1 / width wide on the plane at the focal length; the ray meets it at `length`.
    radius = (2.0 / jnp.sqrt(12.0)) / (width * length)
    origin = jnp.broadcast_to(camera.pose[:, 3], in_world.shape)
    return Rays(origin, in_world / length, radius)


def crop(
    camera: Camera,
    height: jax.Array | int,
    width: jax.Array | int,
    side: int,
    row: jax.Array | int,
    column: jax.Array | int,
) -> Camera:
    """Returns the camera whose image is a square tile of another camera's.

    Args:
      camera: takes an image of `height` x `width` pixels.
      side: of the tile, in pixels; it may reach beyond the image.
      row, column: [] of the tile's upper left pixel.
    """
    scale = width / side
    right = 0.5 * scale - column / side - 0.5
    above = row / side + 0.5 - 0.5 * height / side
    center = scale * camera.center + jnp.stack([right, above], axis=-1)
    return Camera(camera.pose, scale * camera.focal, center)


def _normalize(vector: jax.Array) -> jax.Array:
    return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)
