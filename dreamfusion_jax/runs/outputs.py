"""Outputs of a finished run: images, films, mesh, page, and a record of them.

Each output is written as soon as it is made, and one that fails costs no other. The page and the
record come last and say what is missing; the next call makes only that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

import jax

from dreamfusion_jax.config.flags import Config, is_flat
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.rendering.images import encode_gif, encode_mp4
from dreamfusion_jax.runs import flat_image, memory_advice, mesh_files, progress_strip
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.runs.outputs_record import OutputsRecord, read_record, write_record
from dreamfusion_jax.runs.page import build
from dreamfusion_jax.runs.sampling import PriorSampler, open_sampler
from dreamfusion_jax.runtime import oom
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, atomic_write
from dreamfusion_jax.runtime.png import encode_png, write_png
from dreamfusion_jax.runtime.progress import Progress

Value = TypeVar("Value")

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


class Output(NamedTuple):
    """Files that are made together, and the function that writes them."""

    names: tuple[str, ...]
    write: Callable[[], object]


def make_outputs(
    workdir: AnyPath,
    saved: SavedRun,
    get_sampler: Callable[[PriorOptions], PriorSampler] = open_sampler,
    names: Collection[str] | None = None,
) -> None:
    """Writes images and mesh of the finished scene, or the flat image and the prior's samples.

    Args:
      get_sampler: gives the prior that a flat image is compared with; by default it is loaded.
      names: the files to make; all by default.

    Raises:
      UserError: some could not be made; all others are written.
    """
    config, scene, state = saved
    step = int(state.step)
    names = output_files(config) if names is None else names
    params = jax.device_put(state.scene_params)  # once, for all images and the mesh
    print("Making " + ", ".join(names) + " ...", flush=True)
    if is_flat(config):
        flat = _flat_outputs(workdir, scene, params, step, config, get_sampler)
        failed = write_each(flat, names)
    else:
        failed = write_images(workdir, scene, params, step, config, names)
        failed |= write_mesh(workdir, scene, params, step, config, names)
    made = tuple(name for name in output_files(config) if name not in failed)
    _finish(workdir, config, OutputsRecord(step, made, _reasons(failed)))
    _require_all(workdir, failed)


def output_files(config: Config) -> tuple[str, ...]:
    """Returns the names of the files that are written at the end."""
    return FLAT_FILES if is_flat(config) else SCENE_FILES


def missing_outputs(workdir: AnyPath, config: Config, step: int) -> list[str]:
    """Returns the names of the files that are still to be made of the scene after `step` steps."""
    record = read_record(workdir)
    made = record.files if record and record.step == step else ()
    return [n for n in output_files(config) if n not in made or not (workdir / n).exists()]


def write_each(outputs: Iterable[Output], names: Collection[str]) -> dict[str, Exception]:
    """Writes the outputs that have one of the names; returns the errors by the names of the files.

    An output that fails keeps no other from being made.
    """
    failed: dict[str, Exception] = {}
    for output in outputs:
        if not set(output.names) & set(names):
            continue
        try:
            output.write()
        except Exception as error:  # Encoders and file systems raise many kinds.
            failed |= dict.fromkeys(output.names, error)
    return failed


def update(
    workdir: AnyPath,
    config: Config,
    step: int,
    names: Collection[str],
    failed: Mapping[str, Exception],
) -> None:
    """Updates page and record after files of some names were made again, except those in `failed`.

    Raises:
      UserError: some could not be made.
    """
    before = read_record(workdir)
    if before and before.step == step:
        made = dict.fromkeys([*before.files, *names])
        missing = {n: why for n, why in before.missing.items() if n not in names}
        missing |= _reasons(failed)
        files = tuple(name for name in made if name not in missing)
        _finish(workdir, config, OutputsRecord(step, files, missing))
    else:  # The run has no outputs of this step yet, and makes all of them at its end.
        build.rewrite_page(workdir, config, step, _reasons(failed))
    _require_all(workdir, failed)


def _finish(workdir: AnyPath, config: Config, record: OutputsRecord) -> None:
    """Writes the page, then the record: a run stopped before that makes the outputs again."""
    build.rewrite_page(workdir, config, record.step, record.missing)
    write_record(workdir, record)


def _reasons(failed: Mapping[str, Exception]) -> dict[str, str]:
    return {name: _reason(name, error) for name, error in failed.items()}


def _reason(name: str, error: Exception) -> str:
    """Says in a clause why a file could not be made."""
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename} " if error.filename else ""
        reason = f"{where}cannot be written or run ({error.strerror})"
    else:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"{reason}; films need ffmpeg: pip install imageio-ffmpeg" if _is_film(name) else reason


def _is_film(name: str) -> bool:
    return name.endswith(".mp4")


def _require_all(workdir: AnyPath, failed: Mapping[str, Exception]) -> None:
    if not failed:
        return
    names: dict[str, list[str]] = {}
    for name, reason in _reasons(failed).items():
        names.setdefault(reason, []).append(name)
    missing = "; ".join(f"{', '.join(files)} ({reason})" for reason, files in names.items())
    errors = list(failed.values())
    of_input = all(isinstance(e, UserError) and e.exit_code == 2 for e in errors)
    kind = UserError if of_input else RunError
    raise kind(
        f"In {workdir} these outputs could not be made: {missing}; all others are there, and the"
        " same command makes only what is missing."
    ) from errors[0]


def write_images(
    workdir: AnyPath,
    scene: Scene,
    params: Params,
    step: int,
    config: Config,
    names: Collection[str] = IMAGE_FILES,
) -> dict[str, Exception]:
    """Writes those of `IMAGE_FILES` that are in `names`; returns the errors by file."""
    settings, orbit = config.run, images.training_orbit(config.camera)
    params = jax.device_put(params)  # once, not per image
    total = _tiles(config, names)
    with Progress(total, "rendering", "tile", patience_s=_PATIENCE_S, leave=False) as bar:
        common = (step, orbit, bar.update)

        def poster() -> bytes:
            return encode_png(images.poster(scene, params, settings.poster_size, *common))

        def sheet() -> bytes:
            return encode_png(images.contact_sheet(scene, params, settings.sheet_size, *common))

        @_once
        def turntable() -> images.Turntable:
            size, frames = settings.turntable_size, settings.turntable_frames
            return images.turntable(scene, params, size, frames, *common)

        makers: dict[str, Callable[[], bytes]] = {
            "poster.png": poster,
            "contact_sheet.png": sheet,
            "turntable.mp4": lambda: encode_mp4(turntable().color),
            "turntable.gif": lambda: encode_gif(turntable().color),
            "depth_turntable.mp4": lambda: encode_mp4(turntable().depth),
            "normals_turntable.mp4": lambda: encode_mp4(turntable().normals),
            progress_strip.FILE: lambda: encode_png(progress_strip.progress_strip(workdir)),
        }
        return write_each((_image(workdir, *item, config) for item in makers.items()), names)


def _image(workdir: AnyPath, name: str, make: Callable[[], bytes], config: Config) -> Output:
    """Returns the output of one image or film, whose errors tell when memory ran out."""

    def write() -> None:
        remedies = functools.partial(memory_advice.image_remedies, config.run)
        with oom.oom_context("images were rendered", remedies):
            data = make()
        atomic_write(workdir / name, data)

    return Output((name,), write)


def _tiles(config: Config, names: Collection[str]) -> int:
    """Counts the tiles of the images that are to be rendered."""
    settings, films = config.run, {name for name in IMAGE_FILES if "turntable" in name}
    sheet_views = len(images.SHEET_AZIMUTHS_DEG) + 1
    return (
        images.tiles(settings.poster_size) * ("poster.png" in names)
        + images.tiles(settings.sheet_size) * sheet_views * ("contact_sheet.png" in names)
        + images.tiles(settings.turntable_size)
        * settings.turntable_frames
        * bool(films & set(names))
    )


def write_mesh(
    workdir: AnyPath,
    scene: Scene,
    params: Params,
    step: int,
    config: Config,
    names: Collection[str] = mesh_files.MESH_FILES,
) -> dict[str, Exception]:
    """Writes the mesh in all formats if one of its files is in `names`; returns the errors."""
    mesh = Output(
        mesh_files.MESH_FILES,
        lambda: mesh_files.write_mesh(workdir, scene, params, step, config),
    )
    return write_each([mesh], names)


def _flat_outputs(
    workdir: AnyPath,
    scene: Scene,
    params: Params,
    step: int,
    config: Config,
    get_sampler: Callable[[PriorOptions], PriorSampler],
) -> list[Output]:
    image, comparison = flat_image.FILES
    common = (scene, params, step, config)
    return [
        Output((image,), lambda: flat_image.write_image(workdir, *common)),
        Output(
            (comparison,),
            lambda: flat_image.write_comparison(workdir, *common, get_sampler(config.prior)),
        ),
        Output(
            (progress_strip.FILE,),
            lambda: write_png(
                workdir / progress_strip.FILE, progress_strip.progress_strip(workdir)
            ),
        ),
    ]


def _once(make: Callable[[], Value]) -> Callable[[], Value]:
    """Makes a value at the first call; later calls return it, or raise the same error."""
    results: list[Value] = []
    errors: list[Exception] = []

    def get() -> Value:
        if errors:
            raise errors[0]
        if not results:
            try:
                results.append(make())
            except Exception as error:
                errors.append(error)
                raise
        return results[0]

    return get
