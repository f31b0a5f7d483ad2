"""Given meshes: files to world axes, and signed distances against closed forms."""

import numpy as np
import pytest
import trimesh

from dreamfusion_jax.mesh import given

EXTENTS = np.array([0.9, 0.6, 0.7])
BOX = trimesh.creation.box(EXTENTS)
SPHERE = trimesh.creation.icosphere(4, 0.6)


def box_distance(points, half_size=0.5 * EXTENTS):
    outside = np.abs(points) - half_size
    return np.linalg.norm(np.maximum(outside, 0.0), axis=-1) + np.minimum(outside.max(-1), 0.0)


def sphere_distance(points):
    return np.linalg.norm(points, axis=-1) - 0.6


def samples(mesh, count=6000):
    return given.distance_samples(mesh, 1.0, count, seed=0)


@pytest.mark.parametrize("mesh, exact", [(BOX, box_distance), (SPHERE, sphere_distance)])
def test_sampled_distances_are_those_of_the_shape(mesh, exact):
    points, distance = samples(mesh)
    error = np.abs(distance - exact(points))
    assert error.mean() < 2e-3 and error.max() < 0.015
    far = np.abs(exact(points)) > 5e-3
    np.testing.assert_array_equal(np.sign(distance)[far], np.sign(exact(points))[far])
    assert (np.abs(distance) < 0.02).mean() > 0.1, "many points are near the surface"
    assert np.linalg.norm(points, axis=-1).max() < 1.0


def test_faces_may_look_inwards():
    inverted = trimesh.Trimesh(BOX.vertices, BOX.faces[:, ::-1], process=False)
    points, distance = samples(inverted)
    assert np.abs(distance - box_distance(points)).max() < 0.015


def test_faces_within_other_parts_count_for_nothing():
    """Two boxes that reach into each other are one body."""
    half = trimesh.creation.box([0.6, 0.6, 0.7])
    left, right = half.copy(), half.copy()
    left.apply_translation([-0.15, 0.0, 0.0])
    right.apply_translation([0.15, 0.0, 0.0])
    points, distance = samples(trimesh.util.concatenate([left, right]))
    exact = box_distance(points)
    assert np.abs(distance - exact).max() < 0.02


def test_an_open_surface_encloses_nothing():
    lid = trimesh.Trimesh(BOX.vertices, BOX.faces[:2], process=False)
    with pytest.raises(ValueError, match="encloses nothing"):
        samples(lid)


def test_a_mesh_is_scaled_into_its_sphere():
    moved = BOX.copy()
    moved.apply_translation([3.0, -1.0, 7.0])
    moved.apply_scale(12.0)
    inside = given.into_sphere(moved, 0.8)
    np.testing.assert_allclose(np.linalg.norm(inside.vertices, axis=-1), 0.8)
    np.testing.assert_allclose(inside.extents / inside.extents[0], EXTENTS / EXTENTS[0])


@pytest.mark.parametrize("kind", given.KINDS)
def test_files_are_y_up_and_the_world_is_z_up(kind):
    """In the file it is 0.9 high, along y, which is the world's z; its front, z, is the x."""
    data = trimesh.creation.box([0.6, 0.9, 0.7]).export(file_type=kind)
    read = given.read_mesh(data.encode() if isinstance(data, str) else data, kind)
    np.testing.assert_allclose(read.extents, [0.7, 0.6, 0.9], atol=1e-6)


@pytest.mark.parametrize("data, kind", [(b"", "glb"), (b"nonsense", "ply"), (b"solid", "stl")])
def test_other_files_are_refused(data, kind):
    with pytest.raises(ValueError):
        given.read_mesh(data, kind)
