"""Texture of a surface: composited colors, baking, and reading back.

A NeRF has no surface: a camera sees a mean of the colors below it, as deep as light penetrates.
The texture stores that mean.

Texture coordinates (u, v) are those of OBJ and trimesh: (0, 0) is the lower left corner of the
image, whose row 0 is at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import trimesh
from scipy import ndimage

from dreamfusion_jax.mesh import axis_charts, normal_map
from dreamfusion_jax.mesh.normal_map import FieldNormals, Frame, NormalMap, vertex_tangents
from dreamfusion_jax.mesh.raster import rasterize
from dreamfusion_jax.mesh.surface import Field

# Points below the surface whose mean color approximates the composited one.
LAYERS = 4
# Range along the normal in which light is traced, above and below the surface, in radii of the
# scene. Colors from deeper down, through haze, do not belong to the surface.
_ABOVE, _BELOW, _SAMPLES = 0.05, 0.5, 48

# surface, texels along a side -> source [V], faces [F, 3], uv [V, 2] of `axis_charts.unwrap`
Unwrap = Callable[[trimesh.Trimesh, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


class TexturedMesh(NamedTuple):
    """A surface cut open along the seams of its texture.

    Attributes:
      vertices: [V, 3]; those on a seam are repeated for each chart that they border.
      faces: [F, 3] counter-clockwise seen from outside.
      normals: [V, 3] unit normals, the same on both sides of a seam.
      uv: [V, 2] in [0, 1].
      texture: [T, T, 3] uint8, in sRGB.
      normal_map: of the same size; None: the vertices' normals are all there is.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    normal_map: NormalMap | None = None

    @property
    def frame(self) -> Frame:
        """The frames of its normal map, at the vertices."""
        assert self.normal_map is not None
        return Frame(self.vertices, self.normals, self.normal_map.tangents)


def layers(surface: trimesh.Trimesh, field: Field, radius: float) -> np.ndarray:
    """Returns points [K, V, 3] below each vertex whose mean albedo is the composited color.

    Looking down the normal, the fraction 1 - exp(-integral of density) of the light is absorbed
    above a depth (Max 1995, as in NeRF). The points are the middles of K layers that absorb equal
    amounts: for an albedo linear in this fraction, their mean is the composited color, and K
    evaluations of the field give it at any point between the vertices as well.
    """
    depths = np.linspace(-_ABOVE * radius, _BELOW * radius, _SAMPLES + 1)
    vertices, normals = np.asarray(surface.vertices), np.asarray(surface.vertex_normals)
    middles = 0.5 * (depths[1:] + depths[:-1])
    points = vertices[:, None] - middles[:, None] * normals[:, None]
    density = field(points.reshape(-1, 3))[0].reshape(len(vertices), _SAMPLES)
    optical_depth = np.cumsum(density * np.diff(depths), axis=1, dtype=np.float64)
    absorbed = -np.expm1(-np.pad(optical_depth, [(0, 0), (1, 0)]))
    fractions = (np.arange(LAYERS) + 0.5) / LAYERS
    below = np.stack([np.interp(fractions * a[-1], a, depths) for a in absorbed], axis=0)
    return vertices - below.T[..., None] * normals


def mean_albedo(points: Iterable[np.ndarray], field: Field) -> np.ndarray:
    """Averages the albedo [P, 3] over layers of points, each [P, 3]."""
    return np.mean([field(layer)[1] for layer in points], axis=0)


def add_texture(
    surface: trimesh.Trimesh,
    below: np.ndarray,
    field: Field,
    size: int,
    unwrap: Unwrap = axis_charts.unwrap,
) -> TexturedMesh:
    """Unwraps a surface and bakes its color into a texture of `size` x `size` texels.

    Args:
      below: [K, V, 3] its `layers`.
      unwrap: cuts and flattens the surface.
    """
    source, faces, uv = unwrap(surface, size)
    vertices, normals = np.asarray(surface.vertices), np.asarray(surface.vertex_normals)
    texture = bake(below[:, source[faces]], uv[faces], field, size)
    return TexturedMesh(vertices[source], faces, normals[source], uv, texture)


def add_normals(mesh: TexturedMesh, field_normals: FieldNormals) -> TexturedMesh:
    """Adds a normal map of the field's own normals, as large as the texture."""
    size = len(mesh.texture)
    tangents = vertex_tangents(mesh.vertices, mesh.faces, mesh.normals, mesh.uv)
    frame = Frame(mesh.vertices, mesh.normals, tangents)
    corners = _texels(mesh.uv[mesh.faces], size)
    image = normal_map.bake(corners, mesh.faces, frame, field_normals, size)
    return mesh._replace(normal_map=NormalMap(image, tangents))


def bake(layers: np.ndarray, uv: np.ndarray, field: Field, size: int) -> np.ndarray:
    """Bakes the mean albedo of the layers into a texture [size, size, 3] uint8.

    Texels outside all charts take the color of the nearest texel of a chart.

    Args:
      layers: [K, F, 3, 3] points of the triangles' corners.
      uv: [F, 3, 2] texture coordinates of the triangles' corners.
    """
    fragments = rasterize(_texels(uv, size), size)
    points = (fragments.interpolate(corners) for corners in layers)
    texture = fragments.spread(np.asarray(mean_albedo(points, field), np.float64))
    return np.asarray(np.clip(texture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def read_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Reads colors [P, 3] in [0, 1] at `uv` [P, 2], bilinearly as viewers do."""
    pixels = _texels(uv, len(texture)).T[::-1] - 0.5
    channels = [
        ndimage.map_coordinates(texture[..., i] / 255.0, pixels, order=1, mode="nearest")
        for i in range(3)
    ]
    return np.stack(channels, axis=-1)


def _texels(uv: np.ndarray, size: int) -> np.ndarray:
    """Converts texture coordinates [..., 2] to pixels, x right and y down."""
    return size * np.stack([uv[..., 0], 1.0 - uv[..., 1]], axis=-1)
