"""Poses, pixel rays and their footprints."""

import functools

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
    assert pose[2, 1] > 0.0, "the image's up is the world's up"


def test_overhead_view_has_the_front_at_the_lower_edge():
    pose = orbit_camera(0.0, 90.0, 2.0, 45.0).pose
    chex.assert_trees_all_close(pose[:, 1], jnp.array([-1.0, 0.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("azimuth, elevation", [(30.0, -10.0), (200.0, 75.0)])
def test_center_ray_meets_the_origin(azimuth, elevation):
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
    """Outermost pixel centers lie half a pixel inside the field of view."""
    width = 8
    direction = pixel_rays(orbit_camera(0.0, 0.0, 2.0, 60.0), 1, width).direction[0]
    slope = direction[-1, 1] / -direction[-1, 0]
    np.testing.assert_allclose(slope, np.tan(np.deg2rad(30.0)) * (width - 1) / width, rtol=1e-5)


@pytest.mark.parametrize("default", ["bfloat16", "tensorfloat32", None])
def test_rays_have_full_precision_on_every_platform(default):
    """A TPU's default rounds factors to bfloat16: rays would miss their pixels by most of one."""
    with jax.default_matmul_precision(default):
        program = jax.make_jaxpr(lambda camera: pixel_rays(camera, 4, 4))(
            orbit_camera(30.0, 20.0, 2.5, 40.0)
        )
    products = [equation for equation in program.eqns if equation.primitive.name == "dot_general"]
    highest = jax.lax.Precision.HIGHEST
    assert [product.params["precision"] for product in products] == [(highest, highest)]


def test_radius_has_the_variance_of_a_pixel():
    """A disc of radius r has variance r^2 / 4 an axis, a pixel of width p has p^2 / 12."""
    rays = pixel_rays(orbit_camera(0.0, 0.0, 2.0, 40.0), 65, 65)
    pixel = jnp.linalg.norm(rays.direction[32, 33] - rays.direction[32, 32])
    np.testing.assert_allclose(rays.radius[32, 32, 0] ** 2 / 4.0, pixel**2 / 12.0, rtol=1e-2)


def test_samples_fill_their_ranges_and_nothing_else():
    bounds = {
        "distance": (2.0, 3.0),
        "fov_deg": (40.0, 60.0),
        "elevation_deg": (-10.0, 80.0),
        "azimuth_deg": (-45.0, 45.0),
    }
    ranges = CameraRanges(**bounds)
    sample = jax.jit(jax.vmap(lambda key: sample_camera(key, ranges)))
    draws = sample(jax.random.split(jax.random.key(0), 2000))
    distance = jnp.linalg.norm(draws.camera.pose[:, :, 3], axis=-1)
    fov = 2.0 * jnp.rad2deg(jnp.arctan(0.5 / draws.camera.focal))
    azimuth = (draws.azimuth_deg + 180.0) % 360.0 - 180.0
    assert jnp.all((draws.azimuth_deg >= 0.0) & (draws.azimuth_deg < 360.0))
    drawn = (distance, fov, draws.elevation_deg, azimuth)
    for values, (low, high) in zip(drawn, bounds.values(), strict=True):
        slack = 0.02 * (high - low)
        assert low - 1e-3 <= values.min() <= low + slack
        assert high - slack <= values.max() <= high + 1e-3
    chex.assert_trees_all_close(
        draws.camera.pose[:, :, 3],
        orbit_position(draws.azimuth_deg, draws.elevation_deg, distance),
        atol=1e-5,
    )


# DreamFusion, section 3.1 and appendix A.2.
_PAPER = CameraRanges(
    distance=(1.0, 1.5),
    elevation_deg=(-10.0, 90.0),
    uniform_area_prob=0.5,
    focal_multiplier=(0.7, 1.35),
    position_jitter=0.1,
    look_at_std=0.2,
    up_std=0.02,
)
_COUNT = 20_000


@functools.cache
def _paper_draws():
    draw = jax.jit(jax.vmap(lambda key: sample_camera(key, _PAPER)))
    return jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(3), _COUNT)))


def _distance_of_cdfs(values, cdf):
    """Kolmogorov and Smirnov's: the greatest gap between the empirical CDF and `cdf`."""
    expected = cdf(np.sort(values))
    rank = np.arange(1, len(values) + 1) / len(values)
    return max(np.max(np.abs(rank - expected)), np.max(np.abs(rank - 1 / len(values) - expected)))


def _uniform_cdf(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0.0, 1.0)


def _by_area_cdf(low, high):
    """Of angles whose sine is uniform."""
    sine = lambda degrees: np.sin(np.deg2rad(degrees))  # noqa: E731
    return lambda x: _uniform_cdf(sine(low), sine(high))(sine(np.clip(x, -90.0, 90.0)))


def _mixture_cdf(elevation_deg):
    """Half uniform in angle, half by area."""
    parts = (_uniform_cdf(-10.0, 90.0), _by_area_cdf(-10.0, 90.0))
    return 0.5 * sum(part(elevation_deg) for part in parts)


# The gap that chance exceeds once in a million: sqrt(ln(2e6) / 2 n).
_GAP = np.sqrt(np.log(2e6) / (2 * _COUNT))


@pytest.mark.parametrize(
    ("values", "cdf"),
    [
        (lambda draws: draws.elevation_deg, _mixture_cdf),
        (lambda draws: draws.azimuth_deg, _uniform_cdf(0.0, 360.0)),
        (lambda draws: draws.camera.focal, _uniform_cdf(0.7, 1.35)),
    ],
    ids=["elevation", "azimuth", "focal"],
)
def test_the_papers_cameras_are_distributed_as_it_says(values, cdf):
    assert _distance_of_cdfs(values(_paper_draws()), cdf) < _GAP


def test_the_mixture_is_told_from_either_of_its_parts():
    elevation_deg = _paper_draws().elevation_deg
    assert _distance_of_cdfs(elevation_deg, _uniform_cdf(-10.0, 90.0)) > 3 * _GAP
    assert _distance_of_cdfs(elevation_deg, _by_area_cdf(-10.0, 90.0)) > 3 * _GAP


@pytest.mark.parametrize(("low", "high"), [(-10.0, 45.0), (-90.0, 90.0), (60.0, 90.0), (0.0, 1.0)])
def test_cameras_by_area_keep_to_their_bounds_with_a_uniform_sine(low, high):
    """Equal heights of a sphere's band have equal areas (Archimedes)."""
    ranges = CameraRanges(elevation_deg=(low, high), uniform_area_prob=1.0)
    draw = jax.jit(jax.vmap(lambda key: sample_camera(key, ranges).elevation_deg))
    elevation_deg = np.asarray(draw(jax.random.split(jax.random.key(4), _COUNT)))
    assert low <= elevation_deg.min() and elevation_deg.max() <= high
    ends, sine = np.sin(np.deg2rad([low, high])), np.sin(np.deg2rad(elevation_deg))
    chance = 5.0 * (ends[1] - ends[0]) / np.sqrt(12.0 * _COUNT)
    np.testing.assert_allclose(sine.mean(), ends.mean(), atol=chance)
    assert _distance_of_cdfs(elevation_deg.astype(np.float64), _by_area_cdf(low, high)) < _GAP


@pytest.mark.parametrize("angle", [-10.0, 30.0])
def test_bounds_that_are_one_angle_are_that_angle(angle):
    ranges = CameraRanges(elevation_deg=(angle, angle), uniform_area_prob=0.5)
    draw = jax.jit(jax.vmap(lambda key: sample_camera(key, ranges).elevation_deg))
    elevation_deg = draw(jax.random.split(jax.random.key(5), 50))
    chex.assert_trees_all_equal(elevation_deg, jnp.full(50, angle))


def test_cameras_by_area_leave_those_by_angle_unchanged():
    def elevations(share):
        ranges = CameraRanges(uniform_area_prob=share)
        draw = jax.jit(jax.vmap(lambda key: sample_camera(key, ranges).elevation_deg))
        return draw(jax.random.split(jax.random.key(6), 100))

    assert 25 < jnp.sum(elevations(0.0) == elevations(0.5)) < 75


def test_the_position_jitters_in_a_cube_about_a_uniform_distance():
    draws = _paper_draws()
    unit = np.asarray(orbit_position(draws.azimuth_deg, draws.elevation_deg, 1.0))
    position = draws.camera.pose[:, :, 3]
    # Across the line of sight nothing but the jitter is left.
    along = np.sum(position * unit, axis=-1, keepdims=True)
    across = position - along * unit
    assert np.abs(across).max() < 0.1 * np.sqrt(3.0)
    variance = 0.1**2 / 3.0
    np.testing.assert_allclose(np.sum(across**2, axis=-1).mean(), 2.0 * variance, rtol=0.03)
    np.testing.assert_allclose(along.mean(), 1.25, atol=5e-3)
    np.testing.assert_allclose(along.var(), 0.5**2 / 12.0 + variance, rtol=0.03)


def test_the_look_at_point_and_the_up_vector_are_normal():
    draws = _paper_draws()
    assert np.abs(draws.target.mean(0)).max() < 5 * 0.2 / np.sqrt(_COUNT)
    np.testing.assert_allclose(np.cov(draws.target.T), 0.04 * np.eye(3), atol=2e-3)
    # Images lean by the part of the up vector that is across the line of sight and level.
    level = np.cross([0.0, 0.0, 1.0], draws.camera.pose[:, :, 2])
    slope = np.linalg.norm(level, axis=-1)
    low = slope > 0.9  # where the camera looks nearly level, a lean is a lean of the up vector
    lean = np.sum(draws.camera.pose[low, :, 1] * level[low] / slope[low, None], axis=-1)
    np.testing.assert_allclose(lean.std(), 0.02, rtol=0.1)


def test_the_center_pixels_ray_meets_the_look_at_point():
    def miss(draw):
        rays = pixel_rays(draw.camera, 3, 3)
        towards = draw.target - rays.origin[1, 1]
        return jnp.linalg.norm(jnp.cross(rays.direction[1, 1], towards))

    few = jax.tree.map(lambda leaf: leaf[:200], _paper_draws())
    assert jnp.max(jax.jit(jax.vmap(miss))(few)) < 1e-5
