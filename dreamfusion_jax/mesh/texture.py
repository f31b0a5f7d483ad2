"""A surface's colors as a texture: what the light shows there, unwrapping, baking, reading back.

A NeRF has no surface: a camera sees a mean of the colors behind it, as deep as light comes. The
mesh takes over that mean. Letters as in `nerf.rendering`: tau density, rho albedo, s distance.

Texture coordinates (u, v) are OBJ's and trimesh's: (0, 0) is the lower left corner of the picture,
whose row 0 is at the top.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import trimesh
import xatlas
from scipy import ndimage

from dreamfusion_jax.mesh.raster import rasterize
from dreamfusion_jax.mesh.surface import Field

# Points below the surface whose mean color is what light from there shows.
LAYERS = 4
# Where the light that comes down to the surface is followed: from above it to below it, in radii of
# the scene; further down it is mist, and what is behind that is not the surface's color.
_ABOVE, _BELOW, _SAMPLES = 0.05, 0.5, 48
# Texels between charts: as many as two halvings of the picture (mipmaps) still keep apart.
PADDING = 4


class TexturedMesh(NamedTuple):
    """A surface cut open along the seams of its texture.

    Attributes:
      vertices: [V, 3]; those on a seam come once for each chart that they border.
      faces: [F, 3] counter-clockwise seen from outside.
      normals: [V, 3] unit normals, the same on both sides of a seam.
      uv: [V, 2] in [0, 1].
      texture: [T, T, 3] uint8, in sRGB.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    texture: np.ndarray


def layers(surface: trimesh.Trimesh, field: Field, radius: float) -> np.ndarray:
    """[K, V, 3] points straight below each vertex, whose mean albedo is the color seen there.

    Looking down the normal, the share 1 - exp(-integral of tau) of the light stops above depth s
    (Max 1995, as in NeRF). The points are the middles of K parts, each of which stops as much: of
    an albedo that changes evenly with this share, their mean is the composited color, and a field
    that is asked K times tells it for any point between the vertices as well.
    """
    ways = np.linspace(-_ABOVE * radius, _BELOW * radius, _SAMPLES + 1)
    vertices, normals = np.asarray(surface.vertices), np.asarray(surface.vertex_normals)
    middles = 0.5 * (ways[1:] + ways[:-1])
    points = vertices[:, None] - middles[:, None] * normals[:, None]
    tau = field(points.reshape(-1, 3))[0].reshape(len(vertices), _SAMPLES)
    depth = np.cumsum(tau * np.diff(ways), axis=1, dtype=np.float64)
    stopped = -np.expm1(-np.pad(depth, [(0, 0), (1, 0)]))
    wanted = (np.arange(LAYERS) + 0.5) / LAYERS
    below = np.stack([np.interp(wanted * s[-1], s, ways) for s in stopped], axis=0)
    return vertices - below.T[..., None] * normals


def mean_albedo(points: Iterable[np.ndarray], field: Field) -> np.ndarray:
    """[P, 3] over layers of points, each [P, 3]."""
    return np.mean([field(layer)[1] for layer in points], axis=0)


def add_texture(
    surface: trimesh.Trimesh, below: np.ndarray, field: Field, size: int
) -> TexturedMesh:
    """Unwraps a surface and bakes its color into a texture of `size` x `size` texels.

    Args:
      below: [K, V, 3] its `layers`.
    """
    source, faces, uv = unwrap(surface, size)
    vertices, normals = np.asarray(surface.vertices), np.asarray(surface.vertex_normals)
    texture = bake(below[:, source[faces]], uv[faces], field, size)
    return TexturedMesh(vertices[source], faces, normals[source], uv, texture)


def unwrap(surface: trimesh.Trimesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts and flattens a surface with xatlas, for a texture of `size` x `size` texels.

    Returns:
      source [V], the surface's vertex that each new one is a copy of; faces [F, 3] of new vertices,
      in the surface's order; uv [V, 2].
    """
    atlas = xatlas.Atlas()
    # Never to be freed: xatlas then waits for its threads, now and then for ever. 7 MB a mesh stay.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(atlas))
    atlas.add_mesh(
        np.asarray(surface.vertices, np.float32),
        np.asarray(surface.faces, np.uint32),
        np.asarray(surface.vertex_normals, np.float32),
    )
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.generate(pack_options=packing)
    source, faces, uv = atlas[0]
    return source.astype(int), faces.astype(int), np.asarray(uv, np.float64)


def bake(layers: np.ndarray, uv: np.ndarray, field: Field, size: int) -> np.ndarray:
    """[size, size, 3] uint8: the mean albedo of the layers at each texel.

    Texels of no chart take the color of the nearest one of a chart, so that neither bilinear
    filtering nor smaller copies of the texture show anything else at the seams.

    Args:
      layers: [K, F, 3, 3] the points that the triangles' corners stand for.
      uv: [F, 3, 2] where the triangles are in the texture.
    """
    fragments = rasterize(_texels(uv, size), size)
    texture = np.zeros((size, size, 3))
    points = (fragments.interpolate(corners) for corners in layers)
    texture[fragments.covered] = mean_albedo(points, field)
    nearest = ndimage.distance_transform_edt(
        ~fragments.covered, return_distances=False, return_indices=True
    )
    return np.asarray(np.clip(texture[tuple(nearest)], 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def read_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """[P, 3] colors in [0, 1] at uv [P, 2], bilinear as every viewer's."""
    places = _texels(uv, len(texture)).T[::-1] - 0.5
    channels = [
        ndimage.map_coordinates(texture[..., i] / 255.0, places, order=1, mode="nearest")
        for i in range(3)
    ]
    return np.stack(channels, axis=-1)


def _texels(uv: np.ndarray, size: int) -> np.ndarray:
    """Texture coordinates [..., 2] as pixels of the picture, x right and y down."""
    return size * np.stack([uv[..., 0], 1.0 - uv[..., 1]], axis=-1)
