"""The simple unwrapping: charts that do not overlap, of any surface for any size of texture."""

import numpy as np
import pytest
import trimesh

from dreamfusion_jax.mesh import axis_charts
from dreamfusion_jax.mesh.raster import rasterize


def spiral(turns: int) -> trimesh.Trimesh:
    """A ramp that is above itself `turns` times; all of it looks up."""
    angle = np.linspace(0.0, 2.0 * np.pi * turns, 40 * turns)
    edge = np.stack([np.cos(angle), np.sin(angle), 0.05 * angle], axis=-1)
    vertices = np.concatenate([edge * [0.5, 0.5, 1.0], edge])
    inner = np.arange(len(angle) - 1)
    outer = inner + len(angle)
    faces = [np.stack([inner, outer, outer + 1]), np.stack([inner, outer + 1, inner + 1])]
    return trimesh.Trimesh(vertices, np.concatenate(faces, axis=1).T, process=False)


def rough_ball() -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.vertices += np.random.default_rng(0).normal(0.0, 0.02, mesh.vertices.shape)
    return mesh


SURFACES = {
    "cube": trimesh.creation.box(),
    "torus": trimesh.creation.torus(1.0, 0.3),
    "spiral": spiral(2),
    "rough": rough_ball(),
}


def overlap(uv: np.ndarray, faces: np.ndarray, side: int = 512) -> float:
    """The share of the triangles' area that lies on others."""
    corners = side * uv[faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    return 1.0 - rasterize(corners, side).covered.sum() / area


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("size", [16, 512])
def test_charts_of_any_surface_do_not_overlap(name, size):
    surface = SURFACES[name]
    source, faces, uv = axis_charts.unwrap(surface, size)
    np.testing.assert_array_equal(source[faces], surface.faces)
    assert uv.min() >= 0.0 and uv.max() <= 1.0
    assert abs(overlap(uv, faces)) < 0.02


def test_texels_are_longer_where_a_surface_slants_but_within_bounds():
    surface = SURFACES["torus"]
    _, faces, uv = axis_charts.unwrap(surface, 512)
    lengths = np.linalg.norm(np.diff(uv[faces][:, [0, 1, 2, 0]], axis=1), axis=-1)
    real = np.linalg.norm(np.diff(surface.triangles[:, [0, 1, 2, 0]], axis=1), axis=-1)
    texels = lengths / real / (lengths / real).max()
    assert texels.min() > axis_charts._LEAST_COSINE * 0.99


def test_faces_of_a_cube_are_six_whole_charts():
    surface = SURFACES["cube"].subdivide().subdivide()
    axis = axis_charts.face_axes(surface.face_normals, surface.face_adjacency)
    assert np.bincount(axis).tolist() == 6 * [len(axis) // 6]
    source, _, _ = axis_charts.unwrap(surface, 256)
    assert len(source) == 6 * 25
