"""The scene as a mesh: GLB and OBJ with a texture, PLY with vertex colors, and an image of it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import trimesh

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.mesh import formats, surface, texture
from dreamfusion_jax.mesh.drawing import draw
from dreamfusion_jax.nerf.cameras import Camera
from dreamfusion_jax.nerf.fields.field import FieldOutput, Params
from dreamfusion_jax.nerf.fields.sdf import project_to_surface
from dreamfusion_jax.nerf.scene import DENSITY_LEVELS, Scene
from dreamfusion_jax.nerf.shading import density_normals
from dreamfusion_jax.nerf.view import albedo_view
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import memory_advice
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runs.unwrapping import unwrap
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write
from dreamfusion_jax.runtime.finite import require_finite
from dreamfusion_jax.runtime.progress import Progress

PREVIEW_SIZE = 192
PREVIEW_FILE = "mesh_preview.png"
MESH_FILES = ("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", PREVIEW_FILE)
# Views (azimuth, elevation in degrees) whose silhouettes the automatic threshold matches.
_SILHOUETTES_DEG = tuple(
    (90.0 * i + turn, up) for turn, up in ((0.0, 5.0), (30.0, 35.0), (60.0, 65.0)) for i in range(4)
)
_SILHOUETTE_SIZE = 64
_CHUNK_POINTS = 2**13  # field evaluations at a time, whose activations fit a CPU's caches
_SUPERSAMPLING = 2
_REMEDY = "run it again in another folder with another --seed"
_FAR = 20.0  # cells from the surface beyond which marching cubes needs no value
_PATIENCE_S = 5  # before a progress bar appears


class Mesh(NamedTuple):
    """A surface in its closed and its textured form.

    Attributes:
      surface: closed, in world coordinates.
      color: [V, 3] uint8 albedo at its vertices.
      textured: the same surface, cut open along the seams of its texture.
    """

    surface: trimesh.Trimesh
    color: np.ndarray
    textured: texture.TexturedMesh


def make_mesh(scene: Scene, params: Params, step: int, config: Config) -> Mesh:
    """Extracts the scene's surface by marching cubes, with colors from its field.

    Raises:
      UserError: there is no surface at the threshold.
      RunError: the scene is empty, or memory runs out.
    """
    with oom.oom_context("the mesh was made", lambda: memory_advice.mesh_remedies(config.run)):
        return _make_mesh(scene, params, step, config)


def _make_mesh(scene: Scene, params: Params, step: int, config: Config) -> Mesh:
    settings, radius = config.run, config.scene.bound_radius
    params = jax.device_put(params)  # once, not per image and chunk of points
    field = functools.partial(query_chunked, scene, params, step)
    if scene.level_set.level is None or settings.mesh_threshold:
        density = surface.density_grid(field, radius, settings.mesh_resolution)
        check_density(density, settings.mesh_threshold)
        level = settings.mesh_threshold or automatic_level(
            density, scene, params, step, radius, images.training_orbit(config.camera)
        )
        closed = surface.extract_surface(density, radius, level)
        description = f"density {level:.3g}"
    else:
        closed = _level_set_surface(scene, params, step, radius, settings.mesh_resolution)
        description = "distance 0"
    is_decimated = 0 < settings.mesh_faces < len(closed.faces)
    if is_decimated:
        closed = surface.decimate(closed, settings.mesh_faces)
    _print_progress(description, len(closed.faces), settings)
    if config.scene.render == "surface":  # whose colors are those of the surface alone
        below = np.asarray(closed.vertices)[None]
    else:
        below = texture.layers(closed, field, radius)
    textured = texture.add_texture(closed, below, field, settings.texture_size, unwrap)
    if is_decimated:
        normals = functools.partial(_field_normals, scene, params, step)
        textured = texture.add_normals(textured, normals)
    return Mesh(closed, images.to_uint8(texture.mean_albedo(below, field)), textured)


def _level_set_surface(
    scene: Scene, params: Params, step: int, radius: float, resolution: int
) -> trimesh.Trimesh:
    """Extracts the surface on which the field's level function has its level.

    Marching cubes is given exp(depth / cell) as the density: its logarithm, which is interpolated
    between the nodes, is the depth below the surface in cells. Newton steps then move the vertices
    onto the field's own surface.
    """
    level_set, cell = scene.level_set, 2.0 * radius / (resolution - 1)

    def density(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, albedo = query_chunked(scene, params, step, points, level_set.value)
        return np.exp(np.clip((value - level_set.level) / cell, -_FAR, _FAR)), albedo

    grid = surface.density_grid(density, radius, resolution)
    check_density(np.where(grid > 1.0, grid, 0.0), 0.0)
    closed = surface.extract_surface(grid, radius, 1.0)
    closed.vertices = _project(scene, params, step, closed.vertices, 0.5 * cell)
    return closed


def _project(
    scene: Scene, params: Params, step: int, vertices: np.ndarray, max_step: float
) -> np.ndarray:
    """Moves vertices [V, 3] onto the level set, in Newton steps of at most `max_step`."""
    moved = np.array(vertices, np.float32)
    for first in range(0, len(moved), _CHUNK_POINTS):
        chunk = moved[first : first + _CHUNK_POINTS]
        padded = np.pad(chunk, [(0, _CHUNK_POINTS - len(chunk)), (0, 0)])
        projected = _project_chunk(scene, params, padded, step, max_step)
        moved[first : first + _CHUNK_POINTS] = projected[: len(chunk)]
    return moved


@functools.partial(jax.jit, static_argnames="scene")
def _project_chunk(
    scene: Scene, params: Params, points: jax.Array, step: jax.Array, max_step: jax.Array
) -> jax.Array:
    value_fn, level = scene.level_set
    assert level is not None, "the field has a surface of its own"

    def distance(points: jax.Array) -> jax.Array:
        return level - value_fn(scene.query(params, points, step))

    return project_to_surface(distance, points, max_step)


def _field_normals(scene: Scene, params: Params, step: int, points: np.ndarray) -> np.ndarray:
    """Returns the field's outward unit normals [N, 3] at points; zeros where it has none."""
    normals = np.empty((len(points), 3), np.float32)
    for first in range(0, len(points), _CHUNK_POINTS):
        chunk = np.asarray(points[first : first + _CHUNK_POINTS], np.float32)
        padded = np.pad(chunk, [(0, _CHUNK_POINTS - len(chunk)), (0, 0)])
        normals[first : first + _CHUNK_POINTS] = _normals(scene, params, padded, step)[: len(chunk)]
    return normals


@functools.partial(jax.jit, static_argnames="scene")
def _normals(scene: Scene, params: Params, points: jax.Array, step: jax.Array) -> jax.Array:
    def value(points: jax.Array) -> tuple[jax.Array, None]:
        return scene.level_set.value(scene.query(params, points, step)), None

    return density_normals(value, points)[2]


def check_density(density: np.ndarray, threshold: float) -> None:
    """Checks that the density has a surface at `threshold` (0: at any level).

    Raises:
      RunError: the scene is empty or not finite.
      UserError: the threshold is too high.
    """
    greatest = float(density.max())
    if not np.isfinite(greatest) or greatest <= 0.0:
        problem = "empty" if greatest <= 0.0 else "not finite"
        raise RunError(
            f"The scene in --workdir is {problem}, so that there is no mesh to export; run it again"
            " with another --seed."
        )
    if threshold >= greatest:
        raise UserError(
            f"--mesh_threshold={threshold:g} must be less than the scene's greatest density,"
            f" {greatest:.4g}; choose a lower one, or 0 for an automatic one."
        )


def automatic_level(
    density: np.ndarray, scene: Scene, params: Params, step: int, radius: float, orbit: images.Orbit
) -> float:
    """Returns the density level at which the mesh's silhouettes match the opaque renders.

    If nothing is opaque, it is half of the greatest density.
    """
    cameras = [orbit.camera(*angles) for angles in _SILHOUETTES_DEG]
    views = (albedo_view(camera, jnp.zeros(3)) for camera in cameras)
    opacity = [
        images.render_image(scene, params, view, _SILHOUETTE_SIZE, step).opacity for view in views
    ]
    level = surface.silhouette_threshold(density, radius, cameras, opacity)
    if level is not None:
        return level
    print("Note: nothing in the scene is opaque; the mesh shows its densest part.", file=sys.stderr)
    return 0.5 * float(density.max())


def _print_progress(description: str, faces: int, settings: RunOptions) -> None:
    size = settings.texture_size
    print(
        f"Mesh: surface at {description}, {faces} triangles; unwrapping them for a texture of"
        f" {size} x {size} ...",
        flush=True,
    )


def query_chunked(
    scene: Scene,
    params: Params,
    step: int,
    points: np.ndarray,
    value_fn: Callable[[FieldOutput], jax.Array] = DENSITY_LEVELS.value,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns density, or another value, [N] and albedo [N, 3] at points [N, 3].

    All chunks have one shape, so one program is compiled.
    """
    params = jax.device_put(params)  # once, not with every chunk of points
    value, albedo = np.empty(len(points), np.float32), np.empty((len(points), 3), np.float32)
    starts = range(0, len(points), _CHUNK_POINTS)
    labels = ("evaluating the field", "chunk")
    with Progress(len(starts), *labels, patience_s=_PATIENCE_S, leave=False) as bar:
        for first in starts:
            chunk = np.asarray(points[first : first + _CHUNK_POINTS], np.float32)
            padded = np.pad(chunk, [(0, _CHUNK_POINTS - len(chunk)), (0, 0)])
            outputs = jax.device_get(_value_albedo(scene, value_fn, params, padded, step))
            value[first : first + _CHUNK_POINTS] = outputs[0][: len(chunk)]
            albedo[first : first + _CHUNK_POINTS] = outputs[1][: len(chunk)]
            bar.update()
    return (
        require_finite(value, "The scene's density in --workdir", _REMEDY),
        require_finite(albedo, "The scene's color in --workdir", _REMEDY),
    )


@functools.partial(jax.jit, static_argnames=("scene", "value_fn"))
def _value_albedo(
    scene: Scene,
    value_fn: Callable[[FieldOutput], jax.Array],
    params: Params,
    points: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    out = scene.query(params, points, step)
    return value_fn(out), out.albedo


def mesh_image(mesh: texture.TexturedMesh, camera: Camera, size: int) -> np.ndarray:
    """Renders the mesh on white under a light at the camera: [size, size, 3] uint8."""
    fine = _SUPERSAMPLING * size
    drawing = draw(mesh, camera, fine)
    to_camera = np.asarray(camera.pose)[:, 3] - drawing.points
    to_camera /= np.linalg.norm(to_camera, axis=-1, keepdims=True)
    facing = np.maximum(np.sum(drawing.normals * to_camera, axis=-1, keepdims=True), 0.0)
    image = np.ones((fine, fine, 3))
    image[drawing.covered] = drawing.albedo * (images.AMBIENT + images.DIFFUSE * facing)
    blocks = image.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
    return images.to_uint8(blocks.mean(axis=(1, 3)))


def write_mesh(
    workdir: AnyPath,
    scene: Scene,
    params: Params,
    step: int,
    config: Config,
) -> list[AnyPath]:
    """Writes the mesh in all formats with an image of four sides; returns the paths."""
    mesh = make_mesh(scene, params, step, config)
    orbit = images.training_orbit(config.camera)
    cameras = [orbit.camera(azimuth_deg) for azimuth_deg in images.PREVIEW_AZIMUTHS_DEG]
    sides = [mesh_image(mesh.textured, camera, PREVIEW_SIZE) for camera in cameras]
    files = {
        "mesh.glb": formats.glb_bytes(mesh.textured),
        **formats.obj_files(mesh.textured),
        "mesh.ply": formats.ply_bytes(mesh.surface, mesh.color),
        PREVIEW_FILE: formats.png_bytes(np.concatenate(sides, axis=1)),
    }
    for name in MESH_FILES:
        atomic_write(workdir / name, files[name])
    return [workdir / name for name in MESH_FILES]
