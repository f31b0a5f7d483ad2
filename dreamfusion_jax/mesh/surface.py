"""Extracts a closed surface: density grid, threshold, marching cubes, cleanup, decimation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import fast_simplification
import numpy as np
import trimesh
from scipy import ndimage
from skimage import measure

from dreamfusion_jax.nerf.cameras import Camera, pixel_rays

# points [N, 3] -> density [N], albedo [N, 3]
Field = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# A component with less than this share of the mesh's faces is a floater.
MIN_COMPONENT_SHARE = 0.02
# Above this opacity a pixel shows more of the object than of the background.
OPAQUE = 0.5
_ORDERS = (7.0, 6.0, 5.0, 4.0, 3.0)  # fast_simplification's aggressiveness, its default first
_SAMPLES_PER_CELL = 1.5
# Densities are clipped to the level divided and multiplied by this factor.
_RANGE = 100.0
_NEAR = 0.01  # in logarithms
_MAX_SAMPLES = 1024


def density_grid(field: Field, radius: float, resolution: int) -> np.ndarray:
    """Returns the density [N, N, N] on the bounding sphere's cube, axes x, y, z; 0 outside it."""
    axis = np.linspace(-radius, radius, resolution, dtype=np.float32)
    squares = axis**2
    inside = squares[:, None, None] + squares[:, None] + squares <= radius**2
    density = np.zeros(inside.shape, np.float32)
    density[inside] = field(np.stack([axis[index] for index in np.nonzero(inside)], axis=-1))[0]
    return density


def silhouette_threshold(
    density: np.ndarray, radius: float, cameras: Sequence[Camera], opacity: Sequence[np.ndarray]
) -> float | None:
    """Returns the level whose silhouettes best match the opaque pixels; None if none is opaque.

    A ray meets the surface of a level exactly if the greatest density along it reaches that level.
    So one number per ray decides for every threshold, and one sort yields the intersection over
    union of all silhouettes together for all thresholds.

    Args:
      density: [N, N, N] of `density_grid`.
      cameras, opacity: per camera, the opacity [S, S] of its image, in [0, 1].
    """
    # Interpolated as in `extract_surface`.
    logarithm = np.log(np.maximum(density, density.max() / _RANGE**2))
    pairs = zip(cameras, opacity, strict=True)
    greatest = np.concatenate(
        [
            _greatest_on_rays(logarithm, radius, camera, len(image)).ravel()
            for camera, image in pairs
        ]
    )
    opaque = np.concatenate([np.ravel(image) > OPAQUE for image in opacity])
    if not opaque.any():
        return None
    order = np.argsort(-greatest)
    intersection = np.cumsum(opaque[order])
    union = opaque.sum() + np.cumsum(~opaque[order])
    levels = np.append(greatest[order], logarithm.min())
    # No level separates two rays of the same density.
    score = np.where(levels[:-1] > levels[1:], intersection / union, -1.0)
    best = int(np.argmax(score))
    return float(np.exp(levels[best : best + 2].mean()))


def _greatest_on_rays(grid: np.ndarray, radius: float, camera: Camera, size: int) -> np.ndarray:
    """Returns the greatest grid value [S, S] on each pixel's ray; outside, the grid's least."""
    rays = pixel_rays(camera, size, size)
    origin, direction = np.asarray(rays.origin), np.asarray(rays.direction)
    samples = min(int(_SAMPLES_PER_CELL * len(grid)), _MAX_SAMPLES)
    center = float(np.linalg.norm(origin[0, 0]))
    distances = np.linspace(max(center - radius, 0.0), center + radius, samples)
    greatest, least = np.zeros((size, size), np.float32), float(grid.min())
    cells = (len(grid) - 1) / (2.0 * radius)
    for row in range(size):  # a row at a time, which fits the caches
        points = origin[row, :, None] + distances[:, None] * direction[row, :, None]
        nodes = np.moveaxis((points + radius) * cells, -1, 0)
        values = ndimage.map_coordinates(grid, nodes, order=1, mode="constant", cval=least)
        greatest[row] = values.max(axis=-1)
    return greatest


def extract_surface(density: np.ndarray, radius: float, level: float) -> trimesh.Trimesh:
    """Extracts the closed surface of density `level` in world coordinates, with outward normals.

    Marching cubes (Lewiner et al. 2003) on the density's logarithm; cavities are filled, floaters
    dropped. At its edges a density grows like a high power, whose logarithm linear interpolation
    follows far better.

    Args:
      density: [N, N, N] of `density_grid`.
      level: greater than 0 and less than the greatest density.
    """
    above = _log_ratio(fill_cavities(density, level), level)
    # An empty rim closes the surface where the scene touches the border of the grid.
    above = np.pad(above, 1, constant_values=-np.log(_RANGE))
    vertices, faces, _, _ = measure.marching_cubes(above, 0.0, gradient_direction="ascent")
    cell = 2.0 * radius / (len(density) - 1)
    mesh = trimesh.Trimesh((vertices - 1.0) * cell - radius, faces, process=True)
    return drop_floaters(mesh)


def fill_cavities(density: np.ndarray, level: float) -> np.ndarray:
    """Fills enclosed regions below `level` with the greatest density."""
    solid = density >= level
    return np.where(ndimage.binary_fill_holes(solid) & ~solid, density.max(), density)


def _log_ratio(density: np.ndarray, level: float) -> np.ndarray:
    """Computes log(density / level), clipped, and kept off 0 so that no triangle degenerates.

    The surface crosses an edge of the grid no nearer to its ends than 2e-3 of its length.
    """
    ratio = np.log(np.clip(density / level, 1.0 / _RANGE, _RANGE), dtype=np.float32)
    near = np.abs(ratio) < _NEAR
    ratio[near] = np.where(density[near] < level, -_NEAR, _NEAR)
    return ratio


def drop_floaters(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Removes small components; the largest one always stays."""
    components = trimesh.graph.connected_components(
        mesh.face_adjacency, nodes=np.arange(len(mesh.faces))
    )
    min_faces = min(MIN_COMPONENT_SHARE * len(mesh.faces), max(map(len, components)))
    large = [part for part in components if len(part) >= min_faces]
    mesh.update_faces(np.sort(np.concatenate(large)))
    mesh.remove_unreferenced_vertices()
    return mesh


def decimate(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """Simplifies to at most `faces` triangles by quadric error (Garland and Heckbert 1997).

    Now and then a collapse pinches the surface, so that an edge has four triangles; another order
    of collapses mostly does not. If every order does, more triangles than `faces` are kept.
    """
    while faces < len(mesh.faces):
        for order in _ORDERS:
            vertices, triangles = fast_simplification.simplify(
                np.asarray(mesh.vertices, np.float32), mesh.faces, target_count=faces, agg=order
            )
            simplified = trimesh.Trimesh(vertices, triangles, process=True)
            regular = simplified.is_volume and simplified.nondegenerate_faces().all()
            if len(simplified.faces) >= 4 and regular:
                return simplified
        faces += max(faces // 4, 4)
    return mesh
