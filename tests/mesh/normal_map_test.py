"""Normal maps on a ball of few triangles, of normals that are known."""

import io
import json
import struct

import numpy as np
import pytest
import trimesh

from dreamfusion_jax.mesh import formats, normal_map, texture
from dreamfusion_jax.mesh.drawing import draw
from dreamfusion_jax.nerf.cameras import orbit_camera
from tests.mesh.conftest import RADIUS, ball, unwrap  # noqa: F401, a fixture


def outward(points):
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def ripples(points):
    """Normals that the triangles are too few for."""
    waves = 0.3 * np.sin(20.0 * points[..., [1, 2, 0]])
    return outward(outward(points) + waves)


@pytest.fixture(scope="module")
def bare():
    """A ball of 80 triangles, whose own normals are those of a ball."""
    coarse = trimesh.creation.icosphere(subdivisions=1, radius=RADIUS)
    return texture.add_texture(coarse, np.asarray(coarse.vertices)[None], ball, 256)


@pytest.fixture(scope="module")
def mapped(bare):
    return texture.add_normals(bare, ripples)


def errors_deg(mesh, true=ripples):
    drawing = draw(mesh, orbit_camera(30.0, 20.0, 2.75, 30.0), 96)
    cosine = np.sum(drawing.normals * true(drawing.points), axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def test_the_map_gives_few_triangles_the_normals_of_the_surface(bare, mapped):
    assert errors_deg(bare).mean() > 10.0
    assert errors_deg(mapped).mean() < 0.5 and np.quantile(errors_deg(mapped), 0.99) < 2.0


def test_tangents_lie_along_u_and_bitangents_along_v(unwrap):  # noqa: F811
    """On every triangle, up to the turn of the normals between its corners."""
    fine = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    mesh = texture.add_texture(fine, np.asarray(fine.vertices)[None], ball, 256, unwrap)
    tangents = normal_map.vertex_tangents(mesh.vertices, mesh.faces, mesh.normals, mesh.uv)
    along, sign = tangents[:, :3], tangents[:, 3:]
    np.testing.assert_allclose(np.linalg.norm(along, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.sum(along * mesh.normals, axis=-1), 0.0, atol=1e-6)
    up = np.cross(mesh.normals, along) * sign
    for i in range(3):  # edges in the texture and in space
        start, end = mesh.faces[:, i], mesh.faces[:, (i + 1) % 3]
        in_space, in_texture = (
            mesh.vertices[end] - mesh.vertices[start],
            mesh.uv[end] - mesh.uv[start],
        )
        middle = (along[start] + along[end]) / 2, (up[start] + up[end]) / 2
        projected = np.stack([np.sum(in_space * axis, axis=-1) for axis in middle], axis=-1)
        cosine = np.sum(outward(projected) * outward(in_texture), axis=-1)
        assert np.quantile(cosine, 0.05) > 0.85, "charts are stretched, never turned"


def test_normals_of_another_surface_are_not_taken(bare):
    turned = texture.add_normals(bare, lambda points: -outward(points))
    lost = texture.add_normals(bare, np.zeros_like)
    for mesh in (turned, lost):
        assert (np.abs(mesh.normal_map.image.astype(int) - normal_map.FLAT) <= 1).all()
    assert errors_deg(turned, outward).max() < 0.7, "the mesh's own"


def test_mirrored_charts_have_mirrored_frames():
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
    normals, faces = np.tile([0.0, 0.0, 1.0], (3, 1)), np.array([[0, 1, 2]])
    for u in (1.0, -1.0):
        uv = np.array([[0, 0], [u, 0], [0, 1]], float)
        tangents = normal_map.vertex_tangents(square, faces, normals, uv)
        np.testing.assert_allclose(tangents, np.tile([u, 0, 0, u], (3, 1)), atol=1e-9)


def test_the_glb_has_the_map_and_its_tangents(mapped):
    data = formats.glb_bytes(mapped)
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    (material,), (mesh,) = tree["materials"], tree["meshes"]
    assert material["normalTexture"] != material["pbrMetallicRoughness"]["baseColorTexture"]
    (primitive,) = mesh["primitives"]
    assert primitive["attributes"].keys() == {"POSITION", "NORMAL", "TANGENT", "TEXCOORD_0"}
    accessor = tree["accessors"][primitive["attributes"]["TANGENT"]]
    assert (accessor["type"], accessor["componentType"]) == ("VEC4", 5126)
    read = trimesh.load(io.BytesIO(data), file_type="glb", force="mesh", process=False)
    image = np.asarray(read.visual.material.normalTexture)
    np.testing.assert_array_equal(image, mapped.normal_map.image)
    color = tree["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
    assert color["source"] == 0, "which the page shows"
