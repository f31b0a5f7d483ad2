"""A mesh as the bytes of GLB, OBJ and PLY files, all y up, one unit of the scene a metre."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from dreamfusion_jax.mesh.texture import TexturedMesh

# World (x front, z up) to glTF (z front, y up): a cyclic exchange of axes, so a pure rotation.
WORLD_TO_GLTF = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float64)
# How the OBJ's material, MTL and texture are called; trimesh names all three after the first.
NAME = "mesh"
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963  # numbers of OpenGL
_BLACK, _WHITE = [0, 0, 0, 255], [255, 255, 255, 255]


def glb_bytes(mesh: TexturedMesh) -> bytes:
    """glTF 2.0 in one file: one matt material, its texture a PNG inside."""
    return trimesh.exchange.gltf.export_glb(
        trimesh.Scene({NAME: to_trimesh(mesh)}),
        include_normals=True,
        tree_postprocessor=_name_targets,
    )


def to_trimesh(mesh: TexturedMesh, axes: np.ndarray = WORLD_TO_GLTF) -> trimesh.Trimesh:
    """The mesh as trimesh holds it: what is in the GLB, or with other axes [3, 3], its rows."""
    # Without these factors glTF means polished metal.
    material = trimesh.visual.material.PBRMaterial(
        name=NAME,
        baseColorTexture=Image.fromarray(mesh.texture),
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    return _with_material(mesh, material, axes)


def obj_files(mesh: TexturedMesh) -> dict[str, bytes]:
    """OBJ with its MTL and PNG: file name -> bytes. They refer to each other by these names."""
    material = trimesh.visual.material.SimpleMaterial(
        name=NAME,
        image=Image.fromarray(mesh.texture),
        ambient=_WHITE,
        diffuse=_WHITE,
        specular=_BLACK,
        glossiness=0.0,
    )
    text, files = trimesh.exchange.obj.export_obj(
        _with_material(mesh, material),
        include_normals=True,
        return_texture=True,
        mtl_name=f"{NAME}.mtl",
        header=None,
    )
    return {f"{NAME}.obj": text.encode(), **files}


def ply_bytes(surface: trimesh.Trimesh, color: np.ndarray) -> bytes:
    """Binary PLY of the closed surface with a color [V, 3] uint8 at each vertex."""
    mesh = trimesh.Trimesh(
        _turned(surface.vertices),
        surface.faces,
        vertex_normals=_turned(surface.vertex_normals),
        vertex_colors=color,
        process=False,
    )
    return trimesh.exchange.ply.export_ply(mesh, vertex_normal=True)


def png_bytes(picture: np.ndarray) -> bytes:
    """PNG of [H, W, 3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _name_targets(tree: dict[str, Any]) -> None:
    """Says of each buffer view what it is for (glTF 2.0, bufferView.target)."""
    views, accessors = tree["bufferViews"], tree["accessors"]
    for primitive in (part for mesh in tree["meshes"] for part in mesh["primitives"]):
        for index in primitive["attributes"].values():
            views[accessors[index]["bufferView"]]["target"] = _ARRAY_BUFFER
        views[accessors[primitive["indices"]]["bufferView"]]["target"] = _ELEMENT_ARRAY_BUFFER


def _with_material(
    mesh: TexturedMesh, material: Any, axes: np.ndarray = WORLD_TO_GLTF
) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        _turned(mesh.vertices, axes),
        mesh.faces,
        vertex_normals=_turned(mesh.normals, axes),
        visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=material),
        process=False,
    )


def _turned(vectors: np.ndarray, axes: np.ndarray = WORLD_TO_GLTF) -> np.ndarray:
    """World [N, 3] to other axes. trimesh's transform would make new normals."""
    return np.asarray(vectors) @ axes.T
