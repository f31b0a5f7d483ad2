"""Unwraps a surface by the axis that its faces look along: simple, in numpy, without xatlas.

A chart is a connected part of the surface that looks along one axis, seen from there without
perspective. Compared with xatlas there are more seams, texels are up to three times as long where
the surface slants, and about half of the texture is used instead of most of it.
"""

from __future__ import annotations

import numpy as np
import trimesh
from scipy import sparse

from dreamfusion_jax.mesh.raster import rasterize

# Texels between charts: enough to keep them apart in the first two mipmap levels.
PADDING = 4
_AXES = np.concatenate([np.eye(3), -np.eye(3)])
# The world's axes that are right and up in a chart, by the axis that it looks along.
_RIGHT, _UP = np.array([1, 2, 0, 2, 0, 1]), np.array([2, 0, 1, 1, 2, 0])
_LEAST_COSINE = 0.35  # between a face's normal and its axis
_VOTES = 4  # rounds in which a face takes the axis of most of its neighbors
_MAX_SPLITS = 16
_RASTER_SIDE = 512
_BISECTIONS = 30


def unwrap(surface: trimesh.Trimesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts and flattens a surface for a texture of `size` x `size` texels.

    Returns:
      source [V], the surface's vertex that each new one is a copy of; faces [F, 3] of new vertices,
      in the surface's order; uv [V, 2].
    """
    axis = face_axes(surface.face_normals, surface.face_adjacency)
    triangles = np.asarray(surface.triangles)
    corners = np.stack([_along(triangles, _RIGHT[axis]), _along(triangles, _UP[axis])], axis=-1)
    depth = np.einsum("fkc,fc->fk", triangles, _AXES[axis])
    part = np.zeros(len(axis), int)
    for _ in range(_MAX_SPLITS):
        chart = _connected(surface.face_adjacency, axis, part)
        packed = _pack(corners, chart, size)
        hidden = _overlapping(packed, depth, surface.faces, chart)
        if not hidden.any():
            break
        part = 2 * chart + (hidden[chart] & _is_above_middle(depth, chart))
    keys = chart[:, None] * len(surface.vertices) + surface.faces
    copies, first, faces = np.unique(keys, return_index=True, return_inverse=True)
    return copies % len(surface.vertices), faces.reshape(-1, 3), packed.reshape(-1, 2)[first]


def face_axes(normals: np.ndarray, adjacency: np.ndarray) -> np.ndarray:
    """Returns the axis [F], of +x, +y, +z, -x, -y, -z, that each face is seen along.

    It is the one nearest to the normal [F, 3], or another that suits, if most neighbors have it:
    fewer charts are larger ones. adjacency [E, 2] lists the pairs of neighbors.
    """
    cosine = normals @ _AXES.T
    axis = cosine.argmax(axis=1)
    both = np.concatenate([adjacency, adjacency[:, ::-1]])
    for _ in range(_VOTES):
        votes = cosine.copy()  # which decides between axes of as many neighbors
        np.add.at(votes, (both[:, 0], axis[both[:, 1]]), 1.0)
        axis = np.where(cosine > _LEAST_COSINE, votes, -1.0).argmax(axis=1)
    return axis


def _along(triangles: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Returns the coordinates [F, 3] of the corners [F, 3, 3] along each face's own axis."""
    return np.take_along_axis(triangles, axis[:, None, None], axis=2)[..., 0]


def _connected(adjacency: np.ndarray, axis: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Returns the chart [F] of each face: connected faces with one axis and one part."""
    one, other = adjacency[(axis[adjacency] == axis[adjacency[:, :1]]).all(axis=1)].T
    together = part[one] == part[other]
    shape = (len(axis), len(axis))
    edges = (np.ones(together.sum()), (one[together], other[together]))
    return sparse.csgraph.connected_components(sparse.coo_array(edges, shape), directed=False)[1]


def _overlapping(
    corners: np.ndarray, depth: np.ndarray, faces: np.ndarray, chart: np.ndarray
) -> np.ndarray:
    """Returns [C] whether a chart has faces behind others, as a spiral has.

    Args:
      corners: [F, 3, 2] in the unit square.
      depth: [F, 3] of the corners along their chart's axis.
    """
    from_front = 1.0 + np.ptp(depth) - (depth - depth.min())
    near, far = (
        rasterize(_RASTER_SIDE * corners, _RASTER_SIDE, distance).face
        for distance in (from_front, 1.0 + depth - depth.min())
    )
    near, far = (face[near != far] for face in (near, far))
    apart = (faces[near][:, :, None] != faces[far][:, None]).all(axis=(1, 2))
    return np.bincount(chart[near[apart]], minlength=chart.max() + 1) > 0


def _is_above_middle(depth: np.ndarray, chart: np.ndarray) -> np.ndarray:
    """Returns [F] whether a face is in the upper half of its chart, by depth."""
    middle = depth.mean(axis=1)
    low, high = np.full(chart.max() + 1, np.inf), np.full(chart.max() + 1, -np.inf)
    np.minimum.at(low, chart, middle)
    np.maximum.at(high, chart, middle)
    return middle > (0.5 * (low + high))[chart]


def _pack(corners: np.ndarray, chart: np.ndarray, size: int) -> np.ndarray:
    """Places the charts' rectangles in rows, as large as they fit: corners in the unit square."""
    low = np.full((chart.max() + 1, 2), np.inf)
    high = -low
    for corner in range(3):
        np.minimum.at(low, chart, corners[:, corner])
        np.maximum.at(high, chart, corners[:, corner])
    extent = high - low
    for padding in (PADDING, 1, 0):  # for textures that are too small for so many charts
        scale = _largest_scale(extent, padding, size)
        if scale or not padding:
            break
    place = _rows(scale * extent + padding, size)
    assert place is not None, "points always fit"
    moved = scale * (corners - low[chart][:, None]) + place[chart][:, None] + 0.5 * padding
    return moved / size


def _largest_scale(extent: np.ndarray, padding: float, size: int) -> float:
    """Returns the greatest texels per length with which the rectangles fit; 0: none do."""
    fits, fails = 0.0, size / np.sqrt(extent.prod(axis=1).sum())
    for _ in range(_BISECTIONS):
        middle = 0.5 * (fits + fails)
        if _rows(middle * extent + padding, size) is None:
            fails = middle
        else:
            fits = middle
    return fits


def _rows(extent: np.ndarray, size: int) -> np.ndarray | None:
    """Returns the lower left corners [C, 2] of rectangles [C, 2] in rows, the highest first.

    None where they do not fit into a square of `size`.
    """
    place = np.zeros_like(extent)
    x = y = row = 0.0
    for index in np.argsort(-extent[:, 1], kind="stable"):
        width, height = extent[index]
        if x + width > size:
            x, y, row = 0.0, y + row, 0.0
        if width > size or y + height > size:
            return None
        place[index] = x, y
        x, row = x + width, max(row, height)
    return place
