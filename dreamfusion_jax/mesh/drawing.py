"""Images of a textured mesh."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dreamfusion_jax.mesh.normal_map import decode
from dreamfusion_jax.mesh.raster import project, rasterize
from dreamfusion_jax.mesh.texture import TexturedMesh, read_texture
from dreamfusion_jax.nerf.cameras import Camera


class Drawing(NamedTuple):
    """An image of N x N pixels, one sample each; its P covered pixels row by row.

    Attributes:
      covered: [N, N] bool.
      albedo: [P, 3] in [0, 1], from the texture.
      normals: [P, 3] unit normals: those of the normal map, or interpolated.
      points: [P, 3] positions on the surface.
    """

    covered: np.ndarray
    albedo: np.ndarray
    normals: np.ndarray
    points: np.ndarray


def draw(mesh: TexturedMesh, camera: Camera, size: int) -> Drawing:
    """Draws the mesh at `size` x `size` pixels."""
    corners, distance = project(camera, mesh.vertices[mesh.faces], size)
    fragments = rasterize(corners, size, distance)
    uv, normals, points = (
        fragments.interpolate(values[mesh.faces])
        for values in (mesh.uv, mesh.normals, mesh.vertices)
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    if mesh.normal_map:
        _, *axes = mesh.frame.at(fragments, mesh.faces)
        normals = decode(read_texture(mesh.normal_map.image, uv), *axes)
    return Drawing(fragments.covered, read_texture(mesh.texture, uv), normals, points)
