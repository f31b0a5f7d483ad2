"""The scene as a mesh with vertex colours: GLB and OBJ, and a picture of the mesh itself.

`python -m dreamfusion_jax.export --workdir=...` makes them again from a run's newest checkpoint,
for instance with another --mesh_resolution or --mesh_threshold.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import trimesh
from absl import flags
from skimage import measure

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry, render
from dreamfusion_jax.config import Config
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.cameras import Camera
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.training.checkpoint import load_run
from dreamfusion_jax.training.workdir import check_places

# A component with less than this share of the mesh's faces is a floater, not a part.
MIN_COMPONENT_SHARE = 0.02
# World (x front, z up) to glTF (z front, y up): a cyclic exchange of axes, so a pure rotation.
WORLD_TO_GLTF = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
PREVIEW_SIZE = 192
MESH_FILES = ("mesh.glb", "mesh.obj", "mesh_preview.png")
_FLAGS = ("workdir", "mesh_resolution", "mesh_threshold")
_POINTS = 2**16  # that the field is asked for at a time
_SUPERSAMPLING = 2
_SAMPLES_PER_PIXEL = 6


def extract_mesh(
    scene: Scene, params: Any, step: int, radius: float, resolution: int, threshold: float
) -> trimesh.Trimesh:
    """Marching cubes on the density inside the bounding sphere; world coordinates.

    The surface lies where the density is `threshold`: light is halved there over a length of
    log(2) / threshold. A scene so thin that it nowhere reaches twice the threshold is cut at half
    of its greatest density instead.
    """
    density = density_grid(scene, params, step, radius, resolution)
    greatest = float(density.max())
    if not np.isfinite(greatest) or greatest <= 0.0:
        raise UserError("The scene is empty or not finite, so that there is no mesh to export.")
    # A rim of zeros closes the surface where the scene touches the border of the grid.
    level = min(threshold, 0.5 * greatest)
    vertices, faces, _, _ = measure.marching_cubes(
        np.pad(density, 1), level, gradient_direction="ascent"
    )
    vertices = (vertices - 1.0) * (2.0 * radius / (resolution - 1)) - radius
    mesh = drop_floaters(trimesh.Trimesh(vertices, faces, process=True))
    _, albedo = ask(scene, params, mesh.vertices, step)
    mesh.visual.vertex_colors = render.to_uint8(albedo)
    return mesh


def density_grid(
    scene: Scene, params: Any, step: int, radius: float, resolution: int
) -> np.ndarray:
    """[N, N, N] density on the cube around the bounding sphere, axes x, y, z."""
    axis = np.linspace(-radius, radius, resolution, dtype=np.float32)
    shape = (resolution,) * 3
    density = np.empty(shape, np.float32)
    for first in range(0, density.size, _POINTS):
        place = np.unravel_index(np.arange(first, min(first + _POINTS, density.size)), shape)
        density[place] = ask(scene, params, np.stack([axis[i] for i in place], axis=-1), step)[0]
    return density


def ask(scene: Scene, params: Any, points: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Density [N] and albedo [N, 3] at points [N, 3], by one compiled program for every N."""
    pieces = []
    for first in range(0, len(points), _POINTS):
        piece = np.asarray(points[first : first + _POINTS], np.float32)
        padded = np.pad(piece, [(0, _POINTS - len(piece)), (0, 0)])
        pieces.append(jax.device_get(_density_albedo(scene, params, padded, step)))
    density, albedo = (np.concatenate(parts)[: len(points)] for parts in zip(*pieces, strict=True))
    return density, albedo


@functools.partial(jax.jit, static_argnames="scene")
def _density_albedo(
    scene: Scene, params: Any, points: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return scene.density_albedo(params, points, step)


def drop_floaters(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh without its small components."""
    components = trimesh.graph.connected_components(
        mesh.face_adjacency, nodes=np.arange(len(mesh.faces))
    )
    kept = [part for part in components if len(part) >= MIN_COMPONENT_SHARE * len(mesh.faces)]
    mesh.update_faces(np.sort(np.concatenate(kept)))
    mesh.remove_unreferenced_vertices()
    return mesh


def write_glb(path: Path, mesh: trimesh.Trimesh) -> None:
    """glTF: y up, vertex colours in linear light (its specification), a matt material."""
    mesh = mesh.copy().apply_transform(WORLD_TO_GLTF)
    colour = mesh.visual.vertex_colors[:, :3] / 255.0
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    mesh.visual.vertex_colors = render.to_uint8(linear)

    def make_matt(tree: dict[str, Any]) -> None:
        # Without a material glTF means polished metal.
        matt = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        tree["materials"] = [{"pbrMetallicRoughness": matt}]
        for part in tree["meshes"]:
            for primitive in part["primitives"]:
                primitive["material"] = 0

    path.write_bytes(
        trimesh.exchange.gltf.export_glb(
            trimesh.Scene(mesh), include_normals=True, tree_postprocessor=make_matt
        )
    )


def write_obj(path: Path, mesh: trimesh.Trimesh) -> None:
    """OBJ, y up like the GLB; `v x y z r g b` lines carry the vertex colours."""
    path.write_text(mesh.copy().apply_transform(WORLD_TO_GLTF).export(file_type="obj"))


def mesh_picture(mesh: trimesh.Trimesh, camera: Camera, size: int) -> np.ndarray:
    """The mesh alone, [size, size, 3] uint8, under a light at the camera.

    A z-buffer of random surface points instead of triangles: at several points a pixel there are no
    holes, and there is next to no code.
    """
    fine = _SUPERSAMPLING * size
    pose, focal = np.asarray(camera.pose), float(camera.focal)
    points, faces = trimesh.sample.sample_surface(mesh, _SAMPLES_PER_PIXEL * fine * fine, seed=0)
    to_camera = pose[:, 3] - points
    distance = np.linalg.norm(to_camera, axis=-1)
    # The mean of the corners' normals is smoother than the face's own.
    normals = mesh.vertex_normals[mesh.faces].mean(axis=1)[faces]
    facing = np.sum(normals * to_camera, axis=-1) / distance
    in_camera = -to_camera @ pose[:, :3]
    column = np.floor((focal * in_camera[:, 0] / -in_camera[:, 2] + 0.5) * fine).astype(int)
    row = np.floor((0.5 - focal * in_camera[:, 1] / -in_camera[:, 2]) * fine).astype(int)
    seen = (facing > 0) & (np.minimum(row, column) >= 0) & (np.maximum(row, column) < fine)
    far_to_near = np.flatnonzero(seen)[np.argsort(-distance[seen])]
    face_colour = mesh.visual.vertex_colors[mesh.faces, :3].mean(axis=1) / 255.0
    shade = render.AMBIENT + render.DIFFUSE * facing[far_to_near, None]
    picture = np.ones((fine, fine, 3))
    # Where several points share a pixel the last, which is the nearest, stays.
    picture[row[far_to_near], column[far_to_near]] = face_colour[faces[far_to_near]] * shade
    blocks = picture.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
    return render.to_uint8(blocks.mean(axis=(1, 3)))


def write_mesh(
    workdir: Path,
    scene: Scene,
    params: Any,
    step: int,
    config: Config,
) -> list[Path]:
    """Writes the mesh in both formats and its picture from four sides; returns their paths."""
    settings, radius = config.run, config.scene.bound_radius
    mesh = extract_mesh(
        scene, params, step, radius, settings.mesh_resolution, settings.mesh_threshold
    )
    glb, obj, picture = (workdir / name for name in MESH_FILES)
    write_glb(glb, mesh)
    write_obj(obj, mesh)
    orbit = render.training_orbit(config.camera)
    cameras = [orbit.camera(azimuth_deg) for azimuth_deg in render.PREVIEW_AZIMUTHS_DEG]
    sides = [mesh_picture(mesh, camera, PREVIEW_SIZE) for camera in cameras]
    render.write_png(picture, np.concatenate(sides, axis=1))
    return [glb, obj, picture]


def main() -> int:
    workdir = Path(flags.FLAGS.workdir)
    check_places(workdir)
    config, scene, state = load_run(workdir)
    config = configs.override_run(config, _FLAGS)
    made = write_mesh(workdir, scene, state.params, int(state.step), config)
    print("Made " + ", ".join(map(str, made)))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    entry.run(main)
