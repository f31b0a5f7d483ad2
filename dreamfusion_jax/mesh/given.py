"""A mesh that is given: from a file to signed distances at sampled points.

The surface need not be watertight to the last edge, nor be one piece: what a grid of cells cannot
reach from outside is inside, and faces that lie inside count for nothing. Near the surface, a
point is inside if it lies behind the sampled points of the surface that are nearest to it.
"""

from __future__ import annotations

import io

import numpy as np
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree

from dreamfusion_jax.mesh.formats import WORLD_TO_GLTF

KINDS = ("glb", "obj", "ply")
_SURFACE_SAMPLES = 200_000
_CELLS = 64  # along a side of the grid that separates inside from outside
_NEIGHBORS = 4
_NEAR = 0.02  # distances below this, in radii, are measured to the plane of the nearest sample
_SPREADS = (0.01, 0.05, 0.15)  # of the points near the surface, in radii


def read_mesh(data: bytes, kind: str) -> trimesh.Trimesh:
    """Reads a file that is y up, as its formats have it, to world axes, z up.

    Raises:
      ValueError: it cannot be read, or holds no triangles.
    """
    if kind not in KINDS:
        raise ValueError(f"it is not one of {', '.join(KINDS)}")
    try:
        mesh = trimesh.load(io.BytesIO(data), file_type=kind, force="mesh")
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    except Exception as error:  # trimesh raises many kinds.
        raise ValueError(f"{type(error).__name__}: {str(error):.200}") from error
    if not len(faces) or not np.isfinite(vertices).all():
        raise ValueError("it holds no triangles, or numbers that are not finite")
    return trimesh.Trimesh(vertices @ WORLD_TO_GLTF, faces, process=True)


def into_sphere(mesh: trimesh.Trimesh, radius: float) -> trimesh.Trimesh:
    """Moves the middle of the bounding box to the origin, the farthest vertex to `radius`."""
    vertices = mesh.vertices - mesh.bounds.mean(axis=0)
    farthest = np.linalg.norm(vertices, axis=-1).max()
    return trimesh.Trimesh(vertices * (radius / farthest), mesh.faces, process=False)


def distance_samples(
    mesh: trimesh.Trimesh, radius: float, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples signed distances: two of three points near the surface, the others in the ball.

    Args:
      mesh: within the ball of `radius` around the origin.
      count: N.

    Returns:
      Points [N, 3] in the ball, and their distances [N], negative inside.

    Raises:
      ValueError: the mesh encloses nothing.
    """
    rng = np.random.default_rng(seed)
    at, normals, inside = _outer_surface(mesh, radius, rng)
    near = at[rng.integers(len(at), size=2 * count // 3)]
    spread = radius * rng.choice(_SPREADS, size=(len(near), 1))
    near = near + spread * rng.normal(size=near.shape)
    directions = rng.normal(size=(count - len(near), 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    ball = radius * directions * rng.random((len(directions), 1)) ** (1 / 3)
    points = np.concatenate([near, ball])
    points = points[np.linalg.norm(points, axis=-1) < radius]
    distances = _signed_distance(points, at, normals, inside, radius)
    return points.astype(np.float32), distances.astype(np.float32)


def _outer_surface(
    mesh: trimesh.Trimesh, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples the surface where it borders on the outside.

    Returns:
      Points [M, 3], outward normals [M, 3], and the grid of cells [C, C, C] bool that are inside.
    """
    at, faces = trimesh.sample.sample_surface(mesh, _SURFACE_SAMPLES, seed=rng.integers(2**31))
    at, normals = np.asarray(at), np.asarray(mesh.face_normals)[faces]
    touched = np.zeros((_CELLS,) * 3, bool)
    touched[_cell(at, radius)] = True
    # Closed, because samples may leave a cell out, and the mesh a crack.
    touched = ndimage.binary_closing(touched) | touched
    inside = ndimage.binary_fill_holes(touched) & ~touched
    outside = ~(inside | touched)
    if not inside.any() and not mesh.is_volume:
        raise ValueError("it encloses nothing: close its holes")
    # A cell and a half from a cell of the surface, a cell off the surface is surely met.
    step = 1.75 * (2.0 * radius / _CELLS) * normals
    before, behind = outside[_cell(at + step, radius)], outside[_cell(at - step, radius)]
    normals = np.where((behind & ~before)[:, None], -normals, normals)
    borders = before | behind
    return at[borders], normals[borders], inside


def _signed_distance(
    points: np.ndarray, at: np.ndarray, normals: np.ndarray, inside: np.ndarray, radius: float
) -> np.ndarray:
    """Returns distances [N] to the sampled surface, negative inside."""
    distance, nearest = cKDTree(at).query(points, k=_NEIGHBORS)
    heights = np.sum((points[:, None] - at[nearest]) * normals[nearest], axis=-1)
    # Beyond a sharp edge the nearest points are on one of its faces, and above it.
    is_inside = (heights.mean(axis=-1) < 0.0) | inside[_cell(points, radius)]
    plane, straight = np.abs(heights[:, 0]), distance[:, 0]
    size = np.where(straight < _NEAR * radius, np.minimum(plane, straight), straight)
    return np.where(is_inside, -size, size)


def _cell(points: np.ndarray, radius: float) -> tuple[np.ndarray, ...]:
    index = np.floor((points / radius + 1.0) * (0.5 * _CELLS)).astype(int)
    return tuple(np.clip(index, 0, _CELLS - 1).T)
