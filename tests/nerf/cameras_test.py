"""Poses, pixel rays and their footprints."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.nerf.cameras import (
    CameraRanges,
    look_at,
    orbit_camera,
    orbit_position,
    pixel_rays,
    sample_camera,
)


@pytest.mark.parametrize(
    "azimuth, elevation, position",
    [(0, 0, (2, 0, 0)), (90, 0, (0, 2, 0)), (180, 0, (-2, 0, 0)), (0, 90, (0, 0, 2))],
)
def test_angles_name_the_axes(azimuth, elevation, position):
    chex.assert_trees_all_close(
        orbit_position(azimuth, elevation, 2.0), jnp.array(position, jnp.float32), atol=1e-6
    )


def test_pose_is_a_rotation_that_looks_at_the_target():
    position, target = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.2, 0.1, -0.3])
    pose = look_at(position, target, jnp.array([0.0, 0.0, 1.0]))
    rotation = pose[:, :3]
    chex.assert_trees_all_close(rotation.T @ rotation, jnp.eye(3), atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.det(rotation), 1.0, atol=1e-6)
    towards = (target - position) / jnp.linalg.norm(target - position)
    chex.assert_trees_all_close(-rotation[:, 2], towards, atol=1e-6)
    assert pose[2, 1] > 0.0, "the picture's up is the world's up"


def test_overhead_view_has_the_front_at_the_lower_edge():
    pose = orbit_camera(0.0, 90.0, 2.0, 45.0).pose
    chex.assert_trees_all_close(pose[:, 1], jnp.array([-1.0, 0.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("azimuth, elevation", [(30.0, -10.0), (200.0, 75.0)])
def test_centre_ray_meets_the_origin(azimuth, elevation):
    rays = pixel_rays(orbit_camera(azimuth, elevation, 2.5, 40.0), 5, 7)
    at_origin = rays.origin[2, 3] + 2.5 * rays.direction[2, 3]
    chex.assert_trees_all_close(at_origin, jnp.zeros(3), atol=1e-6)


def test_rows_go_down_and_columns_go_right():
    """Seen from +x with z up, +y is to the right."""
    rays = pixel_rays(orbit_camera(0.0, 0.0, 2.5, 40.0), 4, 6)
    assert jnp.all(rays.direction[0, :, 2] > 0.0) and jnp.all(rays.direction[-1, :, 2] < 0.0)
    assert jnp.all(rays.direction[:, 0, 1] < 0.0) and jnp.all(rays.direction[:, -1, 1] > 0.0)
    chex.assert_trees_all_close(jnp.linalg.norm(rays.direction, axis=-1), jnp.ones((4, 6)))


def test_field_of_view_spans_the_width():
    """Outermost pixel centres lie half a pixel inside the field of view."""
    width = 8
    direction = pixel_rays(orbit_camera(0.0, 0.0, 2.0, 60.0), 1, width).direction[0]
    slope = direction[-1, 1] / -direction[-1, 0]
    np.testing.assert_allclose(slope, np.tan(np.deg2rad(30.0)) * (width - 1) / width, rtol=1e-5)


def test_radius_has_the_variance_of_a_pixel():
    """A disc of radius r has variance r^2 / 4 an axis, a pixel of width p has p^2 / 12."""
    rays = pixel_rays(orbit_camera(0.0, 0.0, 2.0, 40.0), 65, 65)
    pixel = jnp.linalg.norm(rays.direction[32, 33] - rays.direction[32, 32])
    np.testing.assert_allclose(rays.radius[32, 32, 0] ** 2 / 4.0, pixel**2 / 12.0, rtol=1e-2)


def test_samples_fill_their_ranges_and_nothing_else():
    ranges = CameraRanges((2.0, 3.0), (40.0, 60.0), (-10.0, 80.0), (-45.0, 45.0))
    sample = jax.jit(jax.vmap(lambda key: sample_camera(key, ranges)))
    draws = sample(jax.random.split(jax.random.key(0), 2000))
    distance = jnp.linalg.norm(draws.camera.pose[:, :, 3], axis=-1)
    fov = 2.0 * jnp.rad2deg(jnp.arctan(0.5 / draws.camera.focal))
    azimuth = (draws.azimuth_deg + 180.0) % 360.0 - 180.0
    assert jnp.all((draws.azimuth_deg >= 0.0) & (draws.azimuth_deg < 360.0))
    drawn = (distance, fov, draws.elevation_deg, azimuth)
    for values, (low, high) in zip(drawn, ranges, strict=True):
        slack = 0.02 * (high - low)
        assert low - 1e-3 <= values.min() <= low + slack
        assert high - slack <= values.max() <= high + 1e-3
    chex.assert_trees_all_close(
        draws.camera.pose[:, :, 3],
        orbit_position(draws.azimuth_deg, draws.elevation_deg, distance),
        atol=1e-5,
    )
