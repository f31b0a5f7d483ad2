"""Normal maps: the normals of the field's surface on a mesh of fewer triangles.

A texel is the normal in the frame of tangent T (along u), bitangent B (up, along v) and the mesh's
own normal N, as glTF 2.0 has it (section 3.9.3): red, green and blue are its parts, from -1 to 1 as
0 to 255. The tangents go with the mesh, so that a viewer has the frame that was baked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dreamfusion_jax.mesh.raster import Fragments, rasterize

# points [P, 3] -> outward unit normals [P, 3]; zeros where there is none
FieldNormals = Callable[[np.ndarray], np.ndarray]
# Cosine to the mesh's own normal below which the field's is not of the same surface.
_LEAST_COSINE = 0.2
FLAT = np.array([128, 128, 255], np.uint8)


class NormalMap(NamedTuple):
    """A normal map and the frames that it is in.

    Attributes:
      image: [T, T, 3] uint8.
      tangents: [V, 4] unit tangents of the vertices; the last is the sign of B = sign N x T.
    """

    image: np.ndarray
    tangents: np.ndarray


def vertex_tangents(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, uv: np.ndarray
) -> np.ndarray:
    """Computes the tangents [V, 4] of vertices: the direction in which u grows.

    It is that of the triangles around, weighted by their areas, made orthogonal to the normal.
    """
    a, b = (vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2))
    (u1, v1), (u2, v2) = ((uv[faces[:, i]] - uv[faces[:, 0]]).T for i in (1, 2))
    sign = np.sign(u1 * v2 - u2 * v1)
    along = _unit(sign[:, None] * (v2[:, None] * a - v1[:, None] * b))
    area = np.linalg.norm(np.cross(a, b), axis=-1)
    total, turn = np.zeros_like(vertices), np.zeros(len(vertices))
    for corner in faces.T:
        np.add.at(total, corner, area[:, None] * along)
        np.add.at(turn, corner, area * sign)
    return np.column_stack([_orthogonal(total, normals), np.where(turn < 0.0, -1.0, 1.0)])


def bake(
    corners: np.ndarray, faces: np.ndarray, frame: Frame, field_normals: FieldNormals, size: int
) -> np.ndarray:
    """Bakes the field's normals at the mesh's points into an image [size, size, 3] uint8.

    Texels outside all charts take the nearest texel of a chart, as those of the color do. Where the
    field's normal is far from the mesh's own, as where two surfaces touch, that is kept.

    Args:
      corners: [F, 3, 2] texture coordinates of the triangles' corners in texels, y down.
      faces: [F, 3].
      frame: of the mesh's vertices.
    """
    fragments = rasterize(corners, size)
    points, normal, tangent, bitangent = frame.at(fragments, faces)
    wanted = field_normals(points)
    is_other = np.sum(wanted * normal, axis=-1, keepdims=True) < _LEAST_COSINE
    wanted = np.where(is_other, normal, wanted)
    parts = [np.sum(wanted * axis, axis=-1) for axis in (tangent, bitangent, normal)]
    texels = np.round(127.5 + 127.5 * np.stack(parts, axis=-1)).astype(np.uint8)
    return fragments.spread(texels)


class Frame(NamedTuple):
    """The vertices of a mesh with the frames of their normals: all [V, 3] but tangents [V, 4]."""

    vertices: np.ndarray
    normals: np.ndarray
    tangents: np.ndarray

    def at(
        self, fragments: Fragments, faces: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Interpolates points, normals, tangents and bitangents [P, 3] to the covered pixels."""
        points, normals, tangents = (fragments.interpolate(x[faces]) for x in self)
        normals = _unit(normals)
        along = _orthogonal(tangents[:, :3], normals)
        up = np.cross(normals, along) * np.where(tangents[:, 3:] < 0.0, -1.0, 1.0)
        return points, normals, along, up


def decode(
    colors: np.ndarray, normals: np.ndarray, tangents: np.ndarray, bitangents: np.ndarray
) -> np.ndarray:
    """Returns the unit normals [P, 3] that texels [P, 3] in [0, 1] have in these frames."""
    x, y, z = (2.0 * colors - 1.0).T[..., None]
    return _unit(x * tangents + y * bitangents + z * normals)


def _orthogonal(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Returns unit vectors [N, 3] that are the parts of vectors at right angles to the normals."""
    flat = vectors - np.sum(vectors * normals, axis=-1, keepdims=True) * normals
    # Where nothing is left, as at a pole, any direction does.
    axis = np.eye(3)[np.abs(normals).argmin(axis=-1)]
    any_other = np.cross(normals, axis)
    is_lost = np.linalg.norm(flat, axis=-1, keepdims=True) < 1e-9
    return _unit(np.where(is_lost, any_other, flat))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
