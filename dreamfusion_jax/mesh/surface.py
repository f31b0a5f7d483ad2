"""Densities to a closed surface: the grid, the threshold, marching cubes, tidying, decimation."""

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

# A component with less than this share of the mesh's faces is a floater, not a part.
MIN_COMPONENT_SHARE = 0.02
# Half of the light is stopped: what shows more of itself than of what is behind it.
OPAQUE = 0.5
_ORDERS = (7.0, 6.0, 5.0, 4.0, 3.0)  # fast_simplification's aggressiveness, its default first
_SAMPLES_PER_CELL = 1.5
# What is as many times less dense than a level is nothing, and what is as many times denser solid.
_RANGE = 100.0
_NEAR = 0.01  # in logarithms
_MAX_SAMPLES = 1024


def density_grid(field: Field, radius: float, resolution: int) -> np.ndarray:
    """[N, N, N] density on the cube around the bounding sphere, axes x, y, z; 0 outside it."""
    axis = np.linspace(-radius, radius, resolution, dtype=np.float32)
    squares = axis**2
    inside = squares[:, None, None] + squares[:, None] + squares <= radius**2
    density = np.zeros(inside.shape, np.float32)
    density[inside] = field(np.stack([axis[place] for place in np.nonzero(inside)], axis=-1))[0]
    return density


def silhouette_threshold(
    density: np.ndarray, radius: float, cameras: Sequence[Camera], opacity: Sequence[np.ndarray]
) -> float | None:
    """The level whose surface has the silhouettes of what is opaque; None where nothing is.

    A ray meets the surface of a level exactly if the greatest density on its way reaches that
    level. So one number a ray says what every threshold would show there, and the intersection
    over union of all silhouettes together is known for all thresholds after one sort.

    Args:
      density: [N, N, N] as `density_grid` makes it.
      cameras, opacity: what each camera sees, [S, S] in [0, 1].
    """
    # Between nodes as `extract_surface` has it.
    logarithm = np.log(np.maximum(density, density.max() / _RANGE**2))
    pairs = zip(cameras, opacity, strict=True)
    greatest = np.concatenate(
        [_greatest_on_rays(logarithm, radius, camera, len(seen)).ravel() for camera, seen in pairs]
    )
    opaque = np.concatenate([np.ravel(seen) > OPAQUE for seen in opacity])
    if not opaque.any():
        return None
    order = np.argsort(-greatest)
    both = np.cumsum(opaque[order])
    either = opaque.sum() + np.cumsum(~opaque[order])
    levels = np.append(greatest[order], logarithm.min())
    # Between two rays of the same density there is no level.
    score = np.where(levels[:-1] > levels[1:], both / either, -1.0)
    best = int(np.argmax(score))
    return float(np.exp(levels[best : best + 2].mean()))


def _greatest_on_rays(grid: np.ndarray, radius: float, camera: Camera, size: int) -> np.ndarray:
    """[S, S] the greatest value that the ray of each pixel meets; outside the grid it is least."""
    rays = pixel_rays(camera, size, size)
    origin, direction = np.asarray(rays.origin), np.asarray(rays.direction)
    samples = min(int(_SAMPLES_PER_CELL * len(grid)), _MAX_SAMPLES)
    away = float(np.linalg.norm(origin[0, 0]))
    ways = np.linspace(max(away - radius, 0.0), away + radius, samples)
    greatest, least = np.zeros((size, size), np.float32), float(grid.min())
    cells = (len(grid) - 1) / (2.0 * radius)
    for row in range(size):  # a row at a time, so that it fits the caches
        points = origin[row, :, None] + ways[:, None] * direction[row, :, None]
        places = np.moveaxis((points + radius) * cells, -1, 0)
        met = ndimage.map_coordinates(grid, places, order=1, mode="constant", cval=least)
        greatest[row] = met.max(axis=-1)
    return greatest


def extract_surface(density: np.ndarray, radius: float, level: float) -> trimesh.Trimesh:
    """The closed surface on which the density is `level`, in world coordinates, outward normals.

    Marching cubes (Lewiner et al. 2003) on the density's logarithm, without what nobody can see or
    wants to: cavities inside the solid are filled, floaters dropped. At its edges a density grows
    like a high power, whose logarithm a straight line between two nodes follows far better.

    Args:
      density: [N, N, N] as `density_grid` makes it.
      level: greater than 0 and less than the greatest density.
    """
    above = _log_ratio(fill_cavities(density, level), level)
    # A rim of nothing closes the surface where the scene touches the border of the grid.
    above = np.pad(above, 1, constant_values=-np.log(_RANGE))
    vertices, faces, _, _ = measure.marching_cubes(above, 0.0, gradient_direction="ascent")
    cell = 2.0 * radius / (len(density) - 1)
    mesh = trimesh.Trimesh((vertices - 1.0) * cell - radius, faces, process=True)
    return drop_floaters(mesh)


def fill_cavities(density: np.ndarray, level: float) -> np.ndarray:
    """The density with its greatest value wherever no way from outside leads below `level`."""
    solid = density >= level
    return np.where(ndimage.binary_fill_holes(solid) & ~solid, density.max(), density)


def _log_ratio(density: np.ndarray, level: float) -> np.ndarray:
    """log(density / level), bounded, and nowhere so near 0 that triangles shrink to nothing.

    The surface crosses an edge of the grid no nearer to its ends than 2e-3 of its length.
    """
    ratio = np.log(np.clip(density / level, 1.0 / _RANGE, _RANGE), dtype=np.float32)
    near = np.abs(ratio) < _NEAR
    ratio[near] = np.where(density[near] < level, -_NEAR, _NEAR)
    return ratio


def drop_floaters(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh without its small components; of dust the largest grain stays."""
    components = trimesh.graph.connected_components(
        mesh.face_adjacency, nodes=np.arange(len(mesh.faces))
    )
    least = min(MIN_COMPONENT_SHARE * len(mesh.faces), max(map(len, components)))
    kept = [part for part in components if len(part) >= least]
    mesh.update_faces(np.sort(np.concatenate(kept)))
    mesh.remove_unreferenced_vertices()
    return mesh


def decimate(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """The surface with at most `faces` triangles, by quadric error (Garland and Heckbert 1997).

    Now and then that pinches it, so that an edge has four triangles; another order of its collapses
    then mostly does not. Where none does, it keeps more triangles than asked for.
    """
    while faces < len(mesh.faces):
        for order in _ORDERS:
            vertices, triangles = fast_simplification.simplify(
                np.asarray(mesh.vertices, np.float32), mesh.faces, target_count=faces, agg=order
            )
            fewer = trimesh.Trimesh(vertices, triangles, process=True)
            if len(fewer.faces) >= 4 and fewer.is_volume and fewer.nondegenerate_faces().all():
                return fewer
        faces += max(faces // 4, 4)
    return mesh
