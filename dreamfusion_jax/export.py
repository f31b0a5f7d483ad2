"""The scene as a mesh: GLB and OBJ with a texture, PLY with vertex colours, and a picture of it.

`python -m dreamfusion_jax.export --workdir=...` makes them again from a run's newest checkpoint,
for instance with another --mesh_resolution, --mesh_threshold, --mesh_faces or --texture_size.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from absl import flags

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry, memory, render
from dreamfusion_jax.config import Config
from dreamfusion_jax.errors import RunError, UserError
from dreamfusion_jax.files import AnyPath, as_path, write_whole
from dreamfusion_jax.mesh import formats, surface, texture
from dreamfusion_jax.mesh.drawing import draw
from dreamfusion_jax.nerf.cameras import Camera
from dreamfusion_jax.nerf.scene import Scene, albedo_view
from dreamfusion_jax.page import build
from dreamfusion_jax.progress import Progress
from dreamfusion_jax.settings import RunConfig
from dreamfusion_jax.training.checkpoint import load_run
from dreamfusion_jax.training.workdir import check_places

PREVIEW_SIZE = 192
PICTURE = "mesh_preview.png"
MESH_FILES = ("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", PICTURE)
# The views (azimuth, elevation in degrees) whose silhouettes the automatic threshold matches.
_SILHOUETTES_DEG = tuple(
    (90.0 * i + turn, up) for turn, up in ((0.0, 5.0), (30.0, 35.0), (60.0, 65.0)) for i in range(4)
)
_SILHOUETTE_SIZE = 64
_FLAGS = ("workdir", "platform", "mesh_resolution", "mesh_threshold", "mesh_faces", "texture_size")
_POINTS = 2**13  # that the field is asked for at a time: what they make stays in a CPU's caches
_SUPERSAMPLING = 2
_PATIENCE_S = 5  # before a progress bar appears


class Mesh(NamedTuple):
    """One surface twice.

    Attributes:
      surface: closed, in world coordinates.
      colour: [V, 3] uint8 albedo at its vertices.
      textured: the same surface, cut open along the seams of its texture.
    """

    surface: trimesh.Trimesh
    colour: np.ndarray
    textured: texture.TexturedMesh


def make_mesh(scene: Scene, params: Any, step: int, config: Config) -> Mesh:
    """Marching cubes on the density inside the bounding sphere; colours from the field.

    Raises:
      UserError: there is no surface.
      RunError: memory runs out, or the scene is empty.
    """
    with memory.explained("the mesh was made", lambda: memory.mesh_remedies(config.run)):
        return _make_mesh(scene, params, step, config)


def _make_mesh(scene: Scene, params: Any, step: int, config: Config) -> Mesh:
    settings, radius = config.run, config.scene.bound_radius
    field = functools.partial(ask, scene, params, step)
    density = surface.density_grid(field, radius, settings.mesh_resolution)
    check_density(density, settings.mesh_threshold)
    level = settings.mesh_threshold or automatic_level(
        density, scene, params, step, radius, render.training_orbit(config.camera)
    )
    found = surface.extract_surface(density, radius, level)
    if settings.mesh_faces:
        found = surface.decimate(found, settings.mesh_faces)
    _tell(level, len(found.faces), settings)
    below = texture.layers(found, field, radius)
    textured = texture.add_texture(found, below, field, settings.texture_size)
    return Mesh(found, render.to_uint8(texture.mean_albedo(below, field)), textured)


def check_density(density: np.ndarray, threshold: float) -> None:
    """Raises a UserError unless there is a surface at this density (0: at any)."""
    greatest = float(density.max())
    if not np.isfinite(greatest) or greatest <= 0.0:
        fault = "empty" if greatest <= 0.0 else "not finite"
        raise RunError(
            f"The scene in --workdir is {fault}, so that there is no mesh to export; run it again"
            " with another --seed."
        )
    if threshold >= greatest:
        raise UserError(
            f"--mesh_threshold={threshold:g} must be less than the scene's greatest density,"
            f" {greatest:.4g}; choose a lower one, or 0 for an automatic one."
        )


def automatic_level(
    density: np.ndarray, scene: Scene, params: Any, step: int, radius: float, orbit: render.Orbit
) -> float:
    """The density at which the mesh's silhouettes are those of the opaque part of the renders.

    Where nothing is opaque, half of the greatest density.
    """
    cameras = [orbit.camera(*angles) for angles in _SILHOUETTES_DEG]
    views = (albedo_view(camera, jnp.zeros(3)) for camera in cameras)
    opacity = [
        render.render_image(scene, params, view, _SILHOUETTE_SIZE, step).opacity for view in views
    ]
    level = surface.silhouette_threshold(density, radius, cameras, opacity)
    if level is not None:
        return level
    print("Note: nothing in the scene is opaque; the mesh shows its densest part.", file=sys.stderr)
    return 0.5 * float(density.max())


def _tell(level: float, faces: int, settings: RunConfig) -> None:
    """Says what is being made before that takes its time."""
    size = settings.texture_size
    print(
        f"Mesh: surface at density {level:.3g}, {faces} triangles; unwrapping them for a texture of"
        f" {size} x {size} ...",
        flush=True,
    )


def ask(scene: Scene, params: Any, step: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Density [N] and albedo [N, 3] at points [N, 3], by one compiled program for every N."""
    density, albedo = np.empty(len(points), np.float32), np.empty((len(points), 3), np.float32)
    starts = range(0, len(points), _POINTS)
    asking = ("asking the field", "block")
    with Progress(len(starts), *asking, patience_s=_PATIENCE_S, leave=False) as bar:
        for first in starts:
            piece = np.asarray(points[first : first + _POINTS], np.float32)
            padded = np.pad(piece, [(0, _POINTS - len(piece)), (0, 0)])
            tau, rho = jax.device_get(_density_albedo(scene, params, padded, step))
            density[first : first + _POINTS] = tau[: len(piece)]
            albedo[first : first + _POINTS] = rho[: len(piece)]
            bar.update()
    return density, albedo


@functools.partial(jax.jit, static_argnames="scene")
def _density_albedo(
    scene: Scene, params: Any, points: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return scene.density_albedo(params, points, step)


def mesh_picture(mesh: texture.TexturedMesh, camera: Camera, size: int) -> np.ndarray:
    """The mesh alone on white, [size, size, 3] uint8, under a light at the camera."""
    fine = _SUPERSAMPLING * size
    drawing = draw(mesh, camera, fine)
    to_camera = np.asarray(camera.pose)[:, 3] - drawing.points
    to_camera /= np.linalg.norm(to_camera, axis=-1, keepdims=True)
    facing = np.maximum(np.sum(drawing.normals * to_camera, axis=-1, keepdims=True), 0.0)
    picture = np.ones((fine, fine, 3))
    picture[drawing.covered] = drawing.albedo * (render.AMBIENT + render.DIFFUSE * facing)
    blocks = picture.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
    return render.to_uint8(blocks.mean(axis=(1, 3)))


def write_mesh(
    workdir: AnyPath,
    scene: Scene,
    params: Any,
    step: int,
    config: Config,
) -> list[AnyPath]:
    """Writes the mesh in all formats and its picture from four sides; returns their paths."""
    mesh = make_mesh(scene, params, step, config)
    orbit = render.training_orbit(config.camera)
    cameras = [orbit.camera(azimuth_deg) for azimuth_deg in render.PREVIEW_AZIMUTHS_DEG]
    sides = [mesh_picture(mesh.textured, camera, PREVIEW_SIZE) for camera in cameras]
    files = {
        "mesh.glb": formats.glb_bytes(mesh.textured),
        **formats.obj_files(mesh.textured),
        "mesh.ply": formats.ply_bytes(mesh.surface, mesh.colour),
        PICTURE: formats.png_bytes(np.concatenate(sides, axis=1)),
    }
    for name in MESH_FILES:
        write_whole(workdir / name, files[name])
    return [workdir / name for name in MESH_FILES]


def main() -> int:
    entry.use_platform(flags.FLAGS.platform)
    workdir = as_path(flags.FLAGS.workdir)
    check_places(workdir)
    config, scene, state = load_run(workdir)
    if configs.is_flat(config):
        raise UserError(f"--workdir={workdir} holds a flat picture; it has no mesh.")
    step, asked = int(state.step), configs.override_run(config, _FLAGS)
    made = write_mesh(workdir, scene, state.params, step, asked)
    build.rewrite_page(workdir, config, step)
    print("Made " + ", ".join(map(str, made)))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    entry.run(main)
