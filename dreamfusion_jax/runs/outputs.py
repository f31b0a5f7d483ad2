"""What a finished run leaves beside its checkpoints: images, films, mesh, page, a record."""

from __future__ import annotations

import json
from typing import Any

from dreamfusion_jax.config.flags import Config, is_flat
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.rendering.images import encode_gif, encode_mp4
from dreamfusion_jax.runs import flat_image, memory_advice, mesh_files, progress_strip
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.runs.page import build
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


def make_outputs(workdir: AnyPath, saved: SavedRun) -> None:
    """Pictures and mesh of the finished scene; or the flat picture beside the prior's samples."""
    config, scene, state = saved
    step, files = int(state.step), output_files(config)
    print("Making " + ", ".join(files) + " ...", flush=True)
    if is_flat(config):
        flat_image.write_comparison(workdir, scene, state.scene_params, step, config)
        write_png(workdir / progress_strip.FILE, progress_strip.progress_strip(workdir))
    else:
        write_images(workdir, scene, state.scene_params, step, config)
        mesh_files.write_mesh(workdir, scene, state.scene_params, step, config)
    build.write_page(workdir, config, build.FINISHED, step)
    # Last, so that a run that is stopped here makes them again.
    record = json.dumps({"step": step, "files": files}) + "\n"
    atomic_write(_outputs_record(workdir), record.encode())


def output_files(config: Config) -> tuple[str, ...]:
    """The names of what is made at the end."""
    return FLAT_FILES if is_flat(config) else SCENE_FILES


def outputs_made(workdir: AnyPath, config: Config) -> int | None:
    """The step whose scene the outputs show; None unless all of them are there."""
    record = _outputs_record(workdir)
    if not all((workdir / name).exists() for name in (*output_files(config), record.name)):
        return None
    try:
        return read_json(record)["step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # a record cut short, or no record at all: the outputs are made again


def _outputs_record(workdir: AnyPath) -> AnyPath:
    return workdir / "outputs.json"


def write_images(
    workdir: AnyPath, scene: Scene, params: Any, step: int, config: Config
) -> list[AnyPath]:
    """Writes all `IMAGE_FILES`; returns their paths.

    Raises:
      RunError: memory runs out.
    """
    with oom.oom_context("pictures were made", lambda: memory_advice.image_remedies(config.run)):
        files = _image_files(workdir, scene, params, step, config)
    for name in IMAGE_FILES:
        atomic_write(workdir / name, files[name])
    return [workdir / name for name in IMAGE_FILES]


def _image_files(
    workdir: AnyPath, scene: Scene, params: Any, step: int, config: Config
) -> dict[str, bytes]:
    settings, orbit = config.run, images.training_orbit(config.camera)
    size, frames = settings.turntable_size, settings.turntable_frames
    sheet_views = len(images.SHEET_AZIMUTHS_DEG) + 1
    total = images.tiles(settings.poster_size) + sheet_views * images.tiles(settings.sheet_size)
    total += frames * images.tiles(size)
    with Progress(total, "rendering", "tile", patience_s=_PATIENCE_S, leave=False) as bar:
        drawn = scene, params
        still = images.poster(*drawn, settings.poster_size, step, orbit, bar.update)
        sheet = images.contact_sheet(*drawn, settings.sheet_size, step, orbit, bar.update)
        around = images.turntable(*drawn, size, frames, step, orbit, bar.update)
    return {
        "poster.png": encode_png(still),
        "contact_sheet.png": encode_png(sheet),
        "turntable.mp4": encode_mp4(around.color),
        "turntable.gif": encode_gif(around.color),
        "depth_turntable.mp4": encode_mp4(around.depth),
        "normals_turntable.mp4": encode_mp4(around.normals),
        progress_strip.FILE: encode_png(progress_strip.progress_strip(workdir)),
    }
