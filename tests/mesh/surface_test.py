import numpy as np
import pytest
import trimesh
from scipy import ndimage

from dreamfusion_jax.mesh import surface
from dreamfusion_jax.nerf.cameras import orbit_camera, pixel_rays

CENTER = np.array([0.2, 0.0, -0.1])
BALL = 4 / 3 * np.pi * 0.5**3


def grid(density, resolution: int = 40) -> np.ndarray:
    """[N, N, N] of density: points [P, 3] -> [P]."""
    return surface.density_grid(lambda points: (density(points), None), 1.0, resolution)


def from_center(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points - CENTER, axis=-1)


def ball(points: np.ndarray) -> np.ndarray:
    """Density 10 at a distance of 0.5 from the center, rising inwards by 100 a unit."""
    return np.maximum(60.0 - 100.0 * from_center(points), 0.0)


def assert_closed(mesh: trimesh.Trimesh) -> None:
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    assert mesh.nondegenerate_faces().all()


def noise(seed: int, width: float, resolution: int = 16) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(resolution,) * 3)
    return np.maximum(ndimage.gaussian_filter(values, width), 0.0).astype(np.float32)


def test_grid_is_the_field_inside_the_sphere_and_0_outside():
    density = grid(lambda points: points @ [1.0, 10.0, 100.0] + 200.0, 9)
    np.testing.assert_allclose(density[4, 4, 4], 200.0)
    np.testing.assert_allclose(
        [density[5, 4, 4], density[4, 5, 4], density[4, 4, 5]], [200.25, 202.5, 225.0]
    )
    assert density[8, 4, 4] == 201.0 and density[0, 0, 0] == density[8, 5, 4] == 0.0


def test_the_surface_lies_where_the_density_is_the_threshold():
    for level, radius in ((10.0, 0.5), (30.0, 0.3)):
        mesh = surface.extract_surface(grid(ball), 1.0, level)
        np.testing.assert_allclose(from_center(mesh.vertices), radius, atol=0.01)
        assert_closed(mesh)
        np.testing.assert_allclose(mesh.volume, 4 / 3 * np.pi * radius**3, rtol=0.05)


def test_between_nodes_a_density_changes_by_factors():
    """An edge that is thinner than a cell: each cell has twenty times the density of the next."""
    mesh = surface.extract_surface(
        grid(lambda points: 5.0 * np.exp(60.0 * (0.5 - from_center(points)))), 1.0, 5.0
    )
    np.testing.assert_allclose(from_center(mesh.vertices), 0.5, atol=1e-3)


def test_a_box_has_its_volume():
    def box(points):
        return 10.0 - 50.0 * (np.abs(points) - [0.4, 0.3, 0.2]).max(axis=-1)

    mesh = surface.extract_surface(grid(box), 1.0, 10.0)
    assert_closed(mesh)
    np.testing.assert_allclose(mesh.volume, 8 * 0.4 * 0.3 * 0.2, rtol=0.03)
    np.testing.assert_allclose(mesh.extents, [0.8, 0.6, 0.4], atol=0.01)


def test_a_scene_that_fills_the_sphere_is_closed_at_its_border():
    assert_closed(surface.extract_surface(grid(lambda points: np.full(len(points), 5.0)), 1.0, 1.0))


def test_cavities_are_filled():
    def shell(points):
        return ball(points) * (from_center(points) > 0.35)

    mesh = surface.extract_surface(grid(shell), 1.0, 10.0)
    assert mesh.body_count == 1
    np.testing.assert_allclose(mesh.volume, BALL, rtol=0.05)


def test_floaters_are_dropped_and_of_dust_one_grain_stays():
    def with_floater(points):
        return np.maximum(
            ball(points), 50.0 * (np.linalg.norm(points + [0.8, 0, 0], axis=-1) < 0.05)
        )

    mesh = surface.extract_surface(grid(with_floater), 1.0, 10.0)
    assert mesh.body_count == 1 and mesh.vertices[:, 0].min() > -0.4
    dust = np.zeros((24, 24, 24), np.float32)
    dust[2:22:3, 2:22:3, 2:22:3] = 1.0
    assert surface.extract_surface(dust, 1.0, 0.5).body_count >= 1


@pytest.mark.parametrize("seed", range(12))
def test_surface_of_any_density_is_closed_and_nondegenerate(seed):
    density = noise(seed, (0.0, 0.7, 1.5)[seed % 3])
    assert_closed(surface.extract_surface(density, 1.0, 0.4 * float(density.max())))
    # Many nodes exactly at the threshold, or next to it: triangles would shrink to a point there.
    steps = np.round(density / density.max() * 4)
    for level in (2.0, np.nextafter(2.0, 3.0), 2.0 - 1e-6):
        assert_closed(surface.extract_surface(steps.astype(np.float32), 1.0, level))


def disc(radius: float, camera, size: int) -> np.ndarray:
    """[size, size] opacity: 0.9 on the rays that pass the center within `radius`, 0.2 elsewhere."""
    rays = pixel_rays(camera, size, size)
    away = CENTER - np.asarray(rays.origin)
    along = np.sum(away * rays.direction, axis=-1, keepdims=True)
    missed = np.linalg.norm(away - along * rays.direction, axis=-1)
    return np.where(missed < radius, 0.9, 0.2)


@pytest.mark.parametrize("radius", [0.3, 0.5])
def test_automatic_threshold_matches_opaque_silhouettes(radius):
    cameras = [orbit_camera(azimuth_deg, 20.0, 2.5, 50.0) for azimuth_deg in (0.0, 100.0, 200.0)]
    opacity = [disc(radius, camera, 48) for camera in cameras]
    level = surface.silhouette_threshold(grid(ball), 1.0, cameras, opacity)
    np.testing.assert_allclose(level, 60.0 - 100.0 * radius, atol=2.0)
    nothing = [np.full((48, 48), 0.4)] * 3
    assert surface.silhouette_threshold(grid(ball), 1.0, cameras, nothing) is None


def test_decimation_keeps_the_form_and_closes_it():
    whole = surface.extract_surface(grid(ball), 1.0, 10.0)
    assert surface.decimate(whole, len(whole.faces)) is whole
    fewer = surface.decimate(whole, 400)
    assert len(fewer.faces) <= 400
    assert_closed(fewer)
    np.testing.assert_allclose(fewer.volume, whole.volume, rtol=0.02)


def test_decimation_stops_before_the_surface_tears():
    density = noise(0, 1.0, 20)
    spongy = surface.extract_surface(density, 1.0, 0.3 * float(density.max()))
    fewer = surface.decimate(spongy, 100)
    assert_closed(fewer)
    assert 100 < len(fewer.faces) < len(spongy.faces)
