"""Rasterizes triangles with an exact z-buffer in numpy, for images and for texels.

A pixel shows the nearest triangle that contains its center. Pixel (row,
column) has its center at x = column + 1/2, y = row + 1/2; x points right, y down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dreamfusion_jax.nerf.cameras import Camera

_CANDIDATES = 2**18  # pairs of a triangle and a pixel that are tested at a time
# Rounding must not make a center on the edge of two triangles miss both.
_TOLERANCE = 1e-6


class Fragments(NamedTuple):
    """The triangle that each pixel shows.

    Attributes:
      face: [N, N] the triangle's index; -1 where there is none.
      weights: [N, N, 3] barycentric coordinates in that triangle, perspective-correct: of the point
        where the line of sight meets it.
    """

    face: np.ndarray
    weights: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """Returns [N, N] bool, true where a triangle is."""
        return self.face >= 0

    def interpolate(self, corners: np.ndarray) -> np.ndarray:
        """Interpolates values [F, 3, C] at the corners to the P covered pixels: [P, C]."""
        covered = self.covered
        return np.einsum("pk,pkc->pc", self.weights[covered], corners[self.face[covered]])

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Makes an image [N, N, C] of values [P, C] at the covered pixels.

        The others take the value of the nearest covered pixel, so that neither bilinear filtering
        nor mipmaps show anything else at the seams of a texture.
        """
        image = np.zeros((*self.face.shape, values.shape[-1]), values.dtype)
        image[self.covered] = values
        nearest = ndimage.distance_transform_edt(
            ~self.covered, return_distances=False, return_indices=True
        )
        return image[tuple(nearest)]


def rasterize(corners: np.ndarray, size: int, distance: np.ndarray | None = None) -> Fragments:
    """Draws triangles into an image of `size` x `size` pixels.

    Args:
      corners: [F, 3, 2] in pixels, in either winding; triangles without area are not drawn.
      distance: [F, 3] of the corners in front of the camera's plane. Triangles that reach behind
        that plane are left out. None: all are in one plane, and the first triangle wins.
    """
    if distance is None:
        distance = np.ones(corners.shape[:2])
    low = np.clip(np.ceil(corners.min(axis=1) - 0.5), 0, size).astype(int)
    high = np.clip(np.floor(corners.max(axis=1) - 0.5) + 1, 0, size).astype(int)
    extent = np.maximum(high - low, 0)
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    usable = (area != 0.0) & (distance > 0.0).all(axis=1) & np.isfinite(corners).all(axis=(1, 2))
    todo = np.flatnonzero(usable & (extent.prod(axis=1) > 0))
    nearness = np.zeros(size * size)
    fragments = Fragments(np.full(size * size, -1), np.zeros((size * size, 3)))
    ends = np.cumsum(extent[todo].prod(axis=1))
    for part in np.split(todo, np.flatnonzero(np.diff(ends // _CANDIDATES)) + 1):
        face, column, row = _candidates(part, low, extent)
        flat = _barycentric(corners[face], np.stack([column, row], axis=-1) + 0.5)
        inside = (flat >= -_TOLERANCE).all(axis=1)
        face, flat, pixel = face[inside], flat[inside], (row * size + column)[inside]
        # 1 / distance is linear in the image (perspective-correct interpolation).
        near = flat / distance[face]
        total = near.sum(axis=1)
        order = np.argsort(total, kind="stable")
        order = order[total[order] > nearness[pixel[order]]]
        # Of several assignments to a pixel the last, which is the nearest, stays.
        nearness[pixel[order]] = total[order]
        fragments.face[pixel[order]] = face[order]
        fragments.weights[pixel[order]] = near[order] / total[order, None]
    return Fragments(fragments.face.reshape(size, size), fragments.weights.reshape(size, size, 3))


def _candidates(
    faces: np.ndarray, low: np.ndarray, extent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists the pixels of each triangle's bounding box: face, column, row, all [K]."""
    counts = extent[faces].prod(axis=1)
    face = np.repeat(faces, counts)
    index = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = extent[face, 0]
    return face, low[face, 0] + index % width, low[face, 1] + index // width


def _barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns barycentric coordinates [K, 3] of points [K, 2] in triangles [K, 3, 2]."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    parts = [_cross(c - b, points - b), _cross(a - c, points - c), _cross(b - a, points - a)]
    return np.stack(parts, axis=-1) / _cross(b - a, c - a)[:, None]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def project(camera: Camera, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Projects points [..., 3] to pixels [..., 2] and their distances [...] from the camera plane.

    The inverse of `nerf.cameras.pixel_rays` for a square image.
    """
    pose, focal = np.asarray(camera.pose, np.float64), float(camera.focal)
    in_camera = (points - pose[:, 3]) @ pose[:, :3]
    distance = -in_camera[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = focal * in_camera[..., :2] / distance[..., None]
    plane = plane + np.asarray(camera.center, np.float64)
    return size * (0.5 + plane * [1.0, -1.0]), distance
