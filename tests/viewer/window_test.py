"""A window sees what the same camera of our own sees; pictures come from coarse to sharp."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dreamfusion_jax.nerf.cameras import orbit_camera, pixel_rays
from dreamfusion_jax.viewer.window import (
    MIN_SIDE,
    ProgressiveQueue,
    Window,
    pass_sizes,
    vertical_fov,
    window_camera,
)

FOV_DEG = 47.5


def window_of(camera, height, width, fov_deg=FOV_DEG) -> Window:
    """The window in viser's words: x right, y down, z forward."""
    right, up, backward, position = np.asarray(camera.pose, np.float64).T
    turned = Rotation.from_matrix(np.stack([right, -up, -backward], axis=-1))
    wxyz = np.roll(turned.as_quat(), 1)
    return Window(tuple(wxyz), tuple(position), math.radians(fov_deg), height, width)


@pytest.mark.parametrize("angles", [(0.0, 0.0), (35.0, 20.0), (-130.0, -40.0), (180.0, 89.0)])
def test_a_square_window_has_the_rays_of_the_orbit_camera(angles):
    camera = orbit_camera(*angles, 2.75, FOV_DEG)
    rays = pixel_rays(window_camera(window_of(camera, 5, 5)), 5, 5)
    expected = pixel_rays(camera, 5, 5)
    for actual, other in zip(rays, expected, strict=True):
        np.testing.assert_allclose(actual, other, atol=2e-6)


@pytest.mark.parametrize("height, width", [(4, 10), (10, 4), (6, 6)])
def test_a_window_of_any_aspect_sees_its_own_angle_vertically(height, width):
    """Looking along -x from (3, 0, 0), +y is to the right. Pixels are square."""
    window = window_of(orbit_camera(0.0, 0.0, 3.0, 1.0), height, width)
    direction = np.asarray(pixel_rays(window_camera(window), height, width).direction)
    slope = direction[..., 1:] / -direction[..., :1]
    half = math.tan(math.radians(FOV_DEG / 2))
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    np.testing.assert_allclose(slope[:, 0, 1], half * (1.0 - rows / height * 2.0), atol=1e-5)
    across = half * width / height * (columns / width * 2.0 - 1.0)
    np.testing.assert_allclose(slope[0, :, 0], across, atol=1e-5)


@pytest.mark.parametrize("height, width", [(300, 600), (600, 300), (400, 400)])
def test_fov_is_that_of_the_windows_shorter_side(height, width):
    fov = vertical_fov(FOV_DEG, height, width)
    window = window_of(orbit_camera(0.0, 0.0, 3.0, 1.0), height, width, math.degrees(fov))
    focal = float(window_camera(window).focal)  # in widths
    shorter_in_widths = min(height / width, 1.0)
    angle = 2.0 * math.degrees(math.atan(0.5 * shorter_in_widths / focal))
    assert angle == pytest.approx(FOV_DEG, abs=1e-4)


@pytest.mark.parametrize("window", [(720, 1280), (1280, 720), (100, 2000), (900, 900), (40, 30)])
@pytest.mark.parametrize("sharpest", [128, 512, 4096])
@pytest.mark.parametrize("pixels", [1.0, 5e3, 6e4, 1e9])
def test_passes_go_from_what_is_fast_to_what_was_asked_for(window, sharpest, pixels):
    sizes = pass_sizes(window, sharpest, pixels)
    assert max(sizes[-1]) == min(sharpest, max(window)), "no more than the window shows"
    first = sizes[0]
    assert math.prod(first) <= 1.1 * pixels or max(first) <= MIN_SIDE
    for before, after in zip(sizes, sizes[1:], strict=False):
        assert max(before) < max(after) <= 2.5 * max(before)
    for height, width in sizes:
        assert abs(height - width * window[0] / window[1]) <= 1.0 + window[0] / window[1]
    if math.prod(sizes[-1]) <= pixels:
        assert len(sizes) == 1, "what is fast enough is sharp at once"


def test_a_new_start_drops_what_was_still_to_be_drawn():
    queue = ProgressiveQueue()
    assert queue.next() is None
    queue.start([(4, 4), (8, 8), (16, 16)])
    first = queue.next()
    assert first.size == (4, 4) and not first.is_last
    queue.done(first)
    second = queue.next()
    assert second.size == (8, 8) and queue.is_current(second)
    queue.start([(4, 4), (16, 16)])
    assert not queue.is_current(second)
    queue.done(second)  # too late to count
    sizes = []
    while (request := queue.next()) is not None:
        sizes.append(request.size)
        queue.done(request)
    assert sizes == [(4, 4), (16, 16)]
