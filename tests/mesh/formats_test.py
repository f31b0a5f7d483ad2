import io
import json
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
import trimesh
from PIL import Image

from dreamfusion_jax.mesh import formats, texture
from tests.mesh.conftest import RADIUS, colored

_VALIDATE = """
const data = new Uint8Array(require('fs').readFileSync(process.argv[1]));
require('gltf-validator').validateBytes(data)
  .then((report) => console.log(JSON.stringify(report.issues)));
"""


def node(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Packages are found in NODE_PATH."""
    command = ["node", "-e", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ)


def has_validator() -> bool:
    return bool(shutil.which("node")) and not node("require('gltf-validator')").returncode


@pytest.fixture(scope="module")
def written(textured, surface, tmp_path_factory):
    """The folder with all files."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "mesh.glb").write_bytes(formats.glb_bytes(textured))
    for name, data in formats.obj_files(textured).items():
        (folder / name).write_bytes(data)
    color = np.round(255 * colored(surface.vertices)).astype(np.uint8)
    (folder / "mesh.ply").write_bytes(formats.ply_bytes(surface, color))
    return folder


def world(mesh: trimesh.Trimesh) -> np.ndarray:
    """Its vertices with z up again."""
    return mesh.vertices @ formats.WORLD_TO_GLTF


@pytest.mark.parametrize("name", ["mesh.glb", "mesh.obj", "mesh.ply"])
def test_each_file_holds_the_closed_surface(written, name):
    mesh = trimesh.load(written / name, force="mesh")
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices()
    assert merged.is_watertight and merged.nondegenerate_faces().all()
    np.testing.assert_allclose(merged.volume, 4 / 3 * np.pi * RADIUS**3, rtol=0.03)


def test_the_normals_are_in_the_files(textured, surface):
    """Tilted ones, which no reader can make of the triangles."""

    def tilt(vertices):
        tilted = vertices + [0.0, 0.0, 0.8]
        return tilted / np.linalg.norm(tilted, axis=-1, keepdims=True)

    mesh = textured._replace(normals=tilt(textured.vertices))
    bare = trimesh.Trimesh(
        surface.vertices, surface.faces, vertex_normals=tilt(surface.vertices), process=False
    )
    for kind, data in {
        "glb": formats.glb_bytes(mesh),
        "obj": formats.obj_files(mesh)["mesh.obj"],
        "ply": formats.ply_bytes(bare, np.zeros((len(bare.vertices), 3), np.uint8)),
    }.items():
        # Joined to one mesh by trimesh, the parts of a scene would get new normals.
        (read,) = trimesh.load_scene(
            io.BytesIO(data), file_type=kind, process=False
        ).geometry.values()
        normals = read.vertex_normals @ formats.WORLD_TO_GLTF
        np.testing.assert_allclose(normals, tilt(world(read)), atol=1e-5)


@pytest.mark.parametrize("name", ["mesh.glb", "mesh.obj"])
def test_the_texture_comes_with_it_the_right_way_up(written, textured, name):
    mesh = trimesh.load(written / name, force="mesh")
    material = mesh.visual.material
    image = material.baseColorTexture if name == "mesh.glb" else material.image
    np.testing.assert_array_equal(np.asarray(image), textured.texture)
    shown = texture.read_texture(np.asarray(image), mesh.visual.uv)
    np.testing.assert_allclose(shown, colored(world(mesh)), atol=0.02)


def test_the_ply_has_the_colors_at_its_vertices(written):
    mesh = trimesh.load(written / "mesh.ply")
    shown = mesh.visual.vertex_colors[:, :3] / 255
    np.testing.assert_allclose(shown, colored(world(mesh)), atol=0.01)


def test_the_front_of_the_world_is_the_front_of_the_files():
    """+x to +z, and up to +y, as viewers of glTF have it."""
    np.testing.assert_array_equal(formats.WORLD_TO_GLTF @ [1, 0, 0], [0, 0, 1])
    np.testing.assert_array_equal(formats.WORLD_TO_GLTF @ [0, 0, 1], [0, 1, 0])


def test_the_glb_has_one_matt_material_with_a_png_inside(written, textured):
    data = (written / "mesh.glb").read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[20 : 20 + length])
    (material,), (image,), (part,) = tree["materials"], tree["images"], tree["meshes"]
    surface = material["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0.0, 1.0)
    assert surface["baseColorTexture"] == {"index": 0} and len(tree["textures"]) == 1
    (primitive,) = part["primitives"]
    assert primitive["attributes"].keys() == {"POSITION", "NORMAL", "TEXCOORD_0"}
    view = tree["bufferViews"][image["bufferView"]]
    start = 20 + length + 8 + view.get("byteOffset", 0)
    png = Image.open(io.BytesIO(data[start : start + view["byteLength"]]))
    assert (png.format, image["mimeType"]) == ("PNG", "image/png")
    np.testing.assert_array_equal(np.asarray(png), textured.texture)


def test_the_glb_is_no_mirror_and_no_lamp_to_its_reader(written):
    material = trimesh.load(written / "mesh.glb", force="mesh").visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 1.0)
    assert material.emissiveFactor is None and material.emissiveTexture is None
    assert material.baseColorFactor is None, "the texture's colors as they are"


def test_the_obj_names_its_own_files(written):
    assert "mtllib mesh.mtl" in (written / "mesh.obj").read_text().splitlines()
    assert "map_Kd mesh.png" in (written / "mesh.mtl").read_text().splitlines()


@pytest.mark.skipif(not has_validator(), reason="needs node and its package gltf-validator")
def test_the_glb_is_valid(written):
    issues = json.loads(node(_VALIDATE, str(written / "mesh.glb")).stdout)
    assert issues["messages"] == []
