import numpy as np
import pytest

from dreamfusion_jax.mesh import raster
from dreamfusion_jax.nerf.cameras import crop, orbit_camera, pixel_rays

SIZE = 16
CAMERA = orbit_camera(30.0, 25.0, 2.5, 50.0)


def centers(size: int = SIZE) -> np.ndarray:
    """[size, size, 2] x, y."""
    return np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), axis=-1)


def half_planes(triangle: np.ndarray) -> np.ndarray:
    """[size, size] which centers lie on the same side of all edges."""
    sides = []
    for i in range(3):
        edge, off = triangle[(i + 1) % 3] - triangle[i], centers() - triangle[i]
        sides.append(edge[0] * off[..., 1] - edge[1] * off[..., 0])
    return (np.array(sides) > 0).all(axis=0) | (np.array(sides) < 0).all(axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_triangle_covers_the_pixel_centers_inside_it(seed):
    triangle = np.random.default_rng(seed).uniform(-4, SIZE + 4, (3, 2))
    drawn = raster.rasterize(triangle[None], SIZE)
    np.testing.assert_array_equal(drawn.covered, half_planes(triangle))
    assert drawn.covered.any()
    np.testing.assert_allclose(
        drawn.interpolate(triangle[None]), centers()[drawn.covered], atol=1e-9
    )


def test_triangles_that_share_edges_leave_no_hole_between_them():
    """A fan around a pixel's center, its spokes through the centers of many others."""
    angle = np.arange(9) * np.pi / 4
    rim = 8.5 + 20.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    fan = np.stack([np.full((8, 2), 8.5), rim[:-1], rim[1:]], axis=1)
    assert raster.rasterize(fan, SIZE).covered.all()


def two_crossing_triangles() -> tuple[np.ndarray, np.ndarray]:
    """Both cover the whole image; the first is nearer on the left, the second on the right."""
    corners = np.array([[-20.0, -20.0], [60.0, -20.0], [-20.0, 60.0]])
    nearness = 1.0 + 0.01 * (corners[:, 0] - 0.5 * SIZE)
    return np.stack([corners, corners]), 1.0 / np.stack([2.0 - nearness, nearness])


def test_the_nearest_triangle_is_seen_also_where_two_cross(monkeypatch):
    left = np.broadcast_to(np.arange(SIZE) < SIZE // 2, (SIZE, SIZE))
    for candidates in (raster._CANDIDATES, 10):  # and however they are divided
        monkeypatch.setattr(raster, "_CANDIDATES", candidates)
        drawn = raster.rasterize(two_crossing_triangles()[0], SIZE, two_crossing_triangles()[1])
        np.testing.assert_array_equal(drawn.face == 0, left)


def test_a_pixel_shows_the_point_that_its_ray_meets():
    """Perspective: the middle of an edge in space is not the middle of its image."""
    triangle = np.array([[[0.9, -0.8, -0.3], [-0.9, -0.7, 0.2], [-0.2, 1.0, 0.1]]])
    camera = crop(CAMERA, 20, 20, SIZE, 3, 2)  # its optical axis is off the middle
    corners, distance = raster.project(camera, triangle, SIZE)
    drawn = raster.rasterize(corners, SIZE, distance)
    assert drawn.covered.sum() > 30
    rays = pixel_rays(camera, SIZE, SIZE)
    origin, direction = np.asarray(rays.origin), np.asarray(rays.direction)
    normal = np.cross(triangle[0, 1] - triangle[0, 0], triangle[0, 2] - triangle[0, 0])
    way = ((triangle[0, 0] - origin) @ normal) / (direction @ normal)
    met = origin + way[..., None] * direction
    np.testing.assert_allclose(drawn.interpolate(triangle), met[drawn.covered], atol=1e-5)


def test_triangles_of_no_area_or_behind_the_camera_are_hidden():
    line = np.array([[[0.0, 0.0], [8.0, 8.0], [16.0, 16.0]]])
    assert not raster.rasterize(line, SIZE).covered.any()
    outside = np.asarray(CAMERA.pose)[:, 3] * 1.5
    corners, distance = raster.project(
        CAMERA, np.stack([outside, [0, 0, 0], [0, 1, 0]])[None], SIZE
    )
    assert not raster.rasterize(corners, SIZE, distance).covered.any()
