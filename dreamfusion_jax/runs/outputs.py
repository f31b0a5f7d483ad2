"""Outputs of a finished run: images, films, mesh, page, and a record of them."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax

from dreamfusion_jax.config.flags import Config, is_flat
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.rendering.images import encode_gif, encode_mp4
from dreamfusion_jax.runs import flat_image, memory_advice, mesh_files, progress_strip
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.sampling import PriorSampler, open_sampler
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.files import AnyPath, atomic_write, read_json
from dreamfusion_jax.runtime.png import encode_png, write_png
from dreamfusion_jax.runtime.progress import Progress

IMAGE_FILES = (
    "poster.png",
    "contact_sheet.png",
    "turntable.mp4",
    "turntable.gif",
    "depth_turntable.mp4",
    "normals_turntable.mp4",
    progress_strip.FILE,
)
SCENE_FILES = (*IMAGE_FILES, *mesh_files.MESH_FILES, build.FILE)
FLAT_FILES = (*flat_image.FILES, progress_strip.FILE, build.FILE)
_PATIENCE_S = 2  # before a progress bar appears


def make_outputs(
    workdir: AnyPath,
    saved: SavedRun,
    get_sampler: Callable[[PriorOptions], PriorSampler] = open_sampler,
) -> None:
    """Writes images and mesh of the finished scene, or the flat image and the prior's samples.

    Args:
      get_sampler: gives the prior that a flat image is compared with; by default it is loaded.
    """
    config, scene, state = saved
    step, files = int(state.step), output_files(config)
    params = jax.device_put(state.scene_params)  # once, for all images and the mesh
    print("Making " + ", ".join(files) + " ...", flush=True)
    if is_flat(config):
        sampler = get_sampler(config.prior)
        flat_image.write_comparison(workdir, scene, params, step, config, sampler)
        write_png(workdir / progress_strip.FILE, progress_strip.progress_strip(workdir))
    else:
        write_images(workdir, scene, params, step, config)
        mesh_files.write_mesh(workdir, scene, params, step, config)
    build.write_page(workdir, config, build.FINISHED, step)
    # Last, so that a run stopped before this point makes all of them again.
    record = json.dumps({"step": step, "files": files}) + "\n"
    atomic_write(_outputs_record(workdir), record.encode())


def output_files(config: Config) -> tuple[str, ...]:
    """Returns the names of the files that are written at the end."""
    return FLAT_FILES if is_flat(config) else SCENE_FILES


def outputs_made(workdir: AnyPath, config: Config) -> int | None:
    """Returns the step whose scene the outputs show; None unless all of them exist."""
    record = _outputs_record(workdir)
    if not all((workdir / name).exists() for name in (*output_files(config), record.name)):
        return None
    try:
        return read_json(record)["step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # The record is truncated or missing: the outputs are made again.


def _outputs_record(workdir: AnyPath) -> AnyPath:
    return workdir / "outputs.json"


def write_images(
    workdir: AnyPath, scene: Scene, params: Params, step: int, config: Config
) -> list[AnyPath]:
    """Writes all `IMAGE_FILES` and returns their paths.

    Raises:
      RunError: out of memory.
    """
    with oom.oom_context("images were rendered", lambda: memory_advice.image_remedies(config.run)):
        files = _image_files(workdir, scene, params, step, config)
    for name in IMAGE_FILES:
        atomic_write(workdir / name, files[name])
    return [workdir / name for name in IMAGE_FILES]


def _image_files(
    workdir: AnyPath, scene: Scene, params: Params, step: int, config: Config
) -> dict[str, bytes]:
    settings, orbit = config.run, images.training_orbit(config.camera)
    params = jax.device_put(params)  # once, not per image
    size, frames = settings.turntable_size, settings.turntable_frames
    sheet_views = len(images.SHEET_AZIMUTHS_DEG) + 1
    total = images.tiles(settings.poster_size) + sheet_views * images.tiles(settings.sheet_size)
    total += frames * images.tiles(size)
    with Progress(total, "rendering", "tile", patience_s=_PATIENCE_S, leave=False) as bar:
        common = (step, orbit, bar.update)
        poster = images.poster(scene, params, settings.poster_size, *common)
        sheet = images.contact_sheet(scene, params, settings.sheet_size, *common)
        turntable = images.turntable(scene, params, size, frames, *common)
    return {
        "poster.png": encode_png(poster),
        "contact_sheet.png": encode_png(sheet),
        "turntable.mp4": encode_mp4(turntable.color),
        "turntable.gif": encode_gif(turntable.color),
        "depth_turntable.mp4": encode_mp4(turntable.depth),
        "normals_turntable.mp4": encode_mp4(turntable.normals),
        progress_strip.FILE: encode_png(progress_strip.progress_strip(workdir)),
    }
