"""The fidelity of a finished scene's mesh in silhouettes and colors, and its cost.

  python -m tests.benchmarks.mesh --workdir=workdir/a-red-chair

From 16 views that the automatic threshold does not use: intersection over union of the mesh's
silhouettes with the NeRF's pixels of opacity above one half; PSNR of the mesh's colors on the
pixels that both cover, against the rendered albedo without its background, and against the render
over black and over white, which the low density at a NeRF's edges dims or brightens.

With three in NODE_PATH (see tests/three_viewer.py) also the GLB as that shows it: mean color on the
same pixels against the rendered albedo, and the angle between its normals, with and without the
normal map, and the NeRF's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.mesh import formats
from dreamfusion_jax.mesh.drawing import draw
from dreamfusion_jax.mesh.surface import OPAQUE
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import albedo_view, lit_view
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import mesh_files
from dreamfusion_jax.runs.checkpoint import load_run
from tests import three_viewer

VIEWS_DEG = tuple((45.0 * i + 20.0, up) for up in (0.0, 40.0) for i in range(8))
SIZE = 128
_FLAGS = ("workdir", "mesh_resolution", "mesh_threshold", "mesh_faces", "texture_size")


def compare(
    mesh: mesh_files.Mesh, scene: Scene, params: Any, step: int, orbit: images.Orbit
) -> str:
    """Returns IoU and PSNR as text."""
    overlaps, errors = [], {"alone": [], "over black": [], "over white": []}
    for angles in VIEWS_DEG:
        camera = orbit.camera(*angles)
        render = images.render_image(scene, params, albedo_view(camera, jnp.zeros(3)), SIZE, step)
        drawing = draw(mesh.textured, camera, SIZE)
        opaque = render.opacity > OPAQUE
        overlaps.append((drawing.covered & opaque).sum() / (drawing.covered | opaque).sum())
        both, color = drawing.covered & opaque, np.zeros((SIZE, SIZE, 3))
        color[drawing.covered] = drawing.albedo
        black, opacity = render.image[both], render.opacity[both][:, None]
        for name, target in (
            ("alone", black / opacity),
            ("over black", black),
            ("over white", black + 1.0 - opacity),
        ):
            errors[name].append((color[both] - target) ** 2)
    psnr = {name: -10.0 * np.log10(np.concatenate(e).mean()) for name, e in errors.items()}
    return (
        f"IoU mean {np.mean(overlaps):.3f}, least {np.min(overlaps):.3f}; PSNR in dB "
        + ", ".join(f"{name} {value:.1f}" for name, value in psnr.items())
    )


def compare_glb(
    mesh: mesh_files.Mesh, scene: Scene, params: Any, step: int, orbit: images.Orbit
) -> str:
    """Returns the differences between three's images of the GLB and the NeRF's as text."""
    cameras = [orbit.camera(*angles) for angles in VIEWS_DEG]
    glb = formats.glb_bytes(mesh.textured)
    bare = formats.glb_bytes(mesh.textured._replace(normal_map=None))
    shown = three_viewer.render(glb, cameras, SIZE)
    mapped, plain = (three_viewer.render(x, cameras, SIZE, normals=True) for x in (glb, bare))
    colors: list[np.ndarray] = []
    angles: dict[str, list[np.ndarray]] = {"with its map": [], "without": []}
    for i, camera in enumerate(cameras):
        view = lit_view(camera, jnp.zeros(3), ambient=1.0 - 1e-6, diffuse=1e-6)
        render = images.render_image(scene, params, view, SIZE, step)
        both = (render.opacity > OPAQUE) & draw(mesh.textured, camera, SIZE).covered
        colors.append(shown[i][both] - render.image[both] / render.opacity[both][:, None])
        theirs = render.normals[both] @ np.asarray(camera.pose)[:, :3]
        for name, image in (("with its map", mapped[i]), ("without", plain[i])):
            ours = 2.0 * image[both] - 1.0
            lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
            cosine = np.sum(ours * theirs, axis=-1) / np.maximum(lengths, 1e-9)
            angles[name].append(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    mean = 255 * np.concatenate(colors).mean(axis=0)
    degrees = ", ".join(f"{n} {np.concatenate(x).mean():.1f}" for n, x in angles.items())
    return (
        f"GLB in three: mean color {mean[0]:+.1f}, {mean[1]:+.1f}, {mean[2]:+.1f} of 255;"
        f" normals in degrees {degrees}"
    )


def main() -> int:
    config, scene, state = load_run(Path(flags.FLAGS.workdir))
    config = configs.override_run(config, _FLAGS)
    arguments = scene, state.scene_params, int(state.step)
    for _ in range(2):  # the second time everything is compiled, as at the end of a run
        start, worked = time.perf_counter(), time.process_time()
        mesh_files.write_mesh(Path(flags.FLAGS.workdir), *arguments, config)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        print(f"export: {seconds:.1f} s, {worked:.1f} s of all cores together")
    mesh = mesh_files.make_mesh(*arguments, config)
    print(compare(mesh, *arguments, images.training_orbit(config.camera)))
    if three_viewer.find_three():
        print(compare_glb(mesh, *arguments, images.training_orbit(config.camera)))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    cli.run(main)
