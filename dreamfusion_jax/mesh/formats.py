"""Encodes a mesh as GLB, OBJ and PLY files, all y up, one unit of the scene per meter."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from dreamfusion_jax.mesh.texture import TexturedMesh

# World (x front, z up) to glTF (z front, y up): a cyclic permutation of axes, hence a rotation.
WORLD_TO_GLTF = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float64)
# Name of the OBJ's material, MTL and texture; trimesh derives all three from the first.
NAME = "mesh"
_TANGENT = "_TANGENT"  # trimesh has other attributes than its own begin so
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963  # OpenGL constants
_BLACK, _WHITE = [0, 0, 0, 255], [255, 255, 255, 255]


def glb_bytes(mesh: TexturedMesh) -> bytes:
    """Encodes glTF 2.0 in one file, with one matt material and its textures as PNG."""
    exported = to_trimesh(mesh)
    if mesh.normal_map:
        along, sign = np.split(mesh.normal_map.tangents, [3], axis=1)
        tangents = np.concatenate([_change_axes(along), sign], axis=1)
        exported.vertex_attributes[_TANGENT] = tangents.astype(np.float32)
    return trimesh.exchange.gltf.export_glb(
        trimesh.Scene({NAME: exported}),
        include_normals=True,
        tree_postprocessor=_complete,
    )


def to_trimesh(mesh: TexturedMesh, axes: np.ndarray = WORLD_TO_GLTF) -> trimesh.Trimesh:
    """Converts to trimesh, as in the GLB, or with other `axes` [3, 3], one per row."""
    # The defaults of these factors in glTF mean polished metal.
    material = trimesh.visual.material.PBRMaterial(
        name=NAME,
        baseColorTexture=Image.fromarray(mesh.texture),
        normalTexture=Image.fromarray(mesh.normal_map.image) if mesh.normal_map else None,
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    return _with_material(mesh, material, axes)


def obj_files(mesh: TexturedMesh) -> dict[str, bytes]:
    """Encodes OBJ, MTL and PNG: file name -> bytes. They refer to each other by these names."""
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
    """Encodes the closed surface as binary PLY with a color [V, 3] uint8 at each vertex."""
    mesh = trimesh.Trimesh(
        _change_axes(surface.vertices),
        surface.faces,
        vertex_normals=_change_axes(surface.vertex_normals),
        vertex_colors=color,
        process=False,
    )
    return trimesh.exchange.ply.export_ply(mesh, vertex_normal=True)


def png_bytes(image: np.ndarray) -> bytes:
    """Encodes an image [H, W, 3] uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _complete(tree: dict[str, Any]) -> None:
    """Sets each buffer view's target (glTF 2.0, bufferView.target), and the tangents' name."""
    views, accessors = tree["bufferViews"], tree["accessors"]
    for primitive in (part for mesh in tree["meshes"] for part in mesh["primitives"]):
        if _TANGENT in primitive["attributes"]:
            primitive["attributes"]["TANGENT"] = primitive["attributes"].pop(_TANGENT)
        for index in primitive["attributes"].values():
            views[accessors[index]["bufferView"]]["target"] = _ARRAY_BUFFER
        views[accessors[primitive["indices"]]["bufferView"]]["target"] = _ELEMENT_ARRAY_BUFFER


def _with_material(
    mesh: TexturedMesh, material: Any, axes: np.ndarray = WORLD_TO_GLTF
) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        _change_axes(mesh.vertices, axes),
        mesh.faces,
        vertex_normals=_change_axes(mesh.normals, axes),
        visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=material),
        process=False,
    )


def _change_axes(vectors: np.ndarray, axes: np.ndarray = WORLD_TO_GLTF) -> np.ndarray:
    """Maps world vectors [N, 3] to other axes. trimesh's transform would recompute normals."""
    return np.asarray(vectors) @ axes.T
