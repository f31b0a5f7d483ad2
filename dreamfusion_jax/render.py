"""Pictures of a scene: preview, contact sheet, turntable.

`python -m dreamfusion_jax.render --workdir=...` makes the last two again from a run's newest
checkpoint.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from dreamfusion_jax import config as configs
from dreamfusion_jax import entry
from dreamfusion_jax.config import Config
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.files import AnyPath, as_path, write_whole
from dreamfusion_jax.nerf.cameras import Camera, crop, orbit_camera
from dreamfusion_jax.nerf.scene import Scene, View, albedo_view, lit_view
from dreamfusion_jax.platform import platform
from dreamfusion_jax.settings import CameraConfig
from dreamfusion_jax.training.checkpoint import load_run
from dreamfusion_jax.training.workdir import check_places

ELEVATION_DEG = 20.0
OVERHEAD_DEG = 90.0
PREVIEW_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
SHEET_AZIMUTHS_DEG = tuple(45.0 * i for i in range(8))
TURNTABLE_FPS = 16
# Mostly ambient: the light should show the shape without hiding the colour.
AMBIENT, DIFFUSE = 0.6, 0.4
WHITE = (1.0, 1.0, 1.0)
PICTURE_FILES = ("contact_sheet.png", "turntable.mp4", "turntable.gif")
# Side of the tiles of a picture, in pixels.
_TILE_CPU = 64
_TILE = 256
_FLAGS = ("workdir", "sheet_size", "turntable_size", "turntable_frames")


class Orbit(NamedTuple):
    """How far and how wide the cameras of all pictures are; by default as the toybox's own."""

    distance: float = 2.75
    fov_deg: float = 47.5

    def camera(self, azimuth_deg: float, elevation_deg: float = ELEVATION_DEG) -> Camera:
        """The camera on the given side (degrees), a little above the object."""
        return orbit_camera(azimuth_deg, elevation_deg, self.distance, self.fov_deg)


def training_orbit(config: CameraConfig) -> Orbit:
    """The middle of the ranges that the scene was trained from."""
    fov_deg = sum(config.fov_deg) / 2
    if config.focal_multiplier[1] > 0.0:
        fov_deg = 2.0 * math.degrees(math.atan(1.0 / sum(config.focal_multiplier)))
    return Orbit(sum(config.distance) / 2, fov_deg)


class Picture(NamedTuple):
    """A render as arrays of the host: image, normals [N, N, 3], opacity, depth [N, N]."""

    image: np.ndarray
    opacity: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


def render_image(scene: Scene, params: Any, view: View, size: int, step: int) -> Picture:
    """A picture of `size` x `size` pixels of one view, deterministic.

    Larger ones are put together from tiles, so that one compiled program serves all sizes.
    """
    side = _TILE_CPU if platform() == "cpu" else _TILE
    side = size if scene.flat else min(side, size)
    params, starts = jax.device_put(params), range(0, size, side)
    tiles = [
        [_render_tile(scene, params, view, size, side, row, column, step) for column in starts]
        for row in starts
    ]

    def join(*pieces: jax.Array) -> np.ndarray:
        columns = len(starts)
        rows = (pieces[i : i + columns] for i in range(0, len(pieces), columns))
        whole = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        return whole[:size, :size]

    return Picture(*map(join, *itertools.chain(*tiles)))


@functools.partial(jax.jit, static_argnames=("scene", "side"))
def _render_tile(
    scene: Scene,
    params: Any,
    view: View,
    size: jax.Array,
    side: int,
    row: jax.Array,
    column: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, ...]:
    view = view._replace(camera=crop(view.camera, size, side, row, column))
    drawn = scene.render(params, view, side, side, step, None)
    return drawn.image, drawn.opacity, drawn.depth, drawn.normals


def preview(
    scene: Scene,
    params: Any,
    size: int,
    step: int,
    orbit: Orbit,
    azimuths_deg: Sequence[float] = PREVIEW_AZIMUTHS_DEG,
) -> np.ndarray:
    """The albedo from A sides in a row: [size, A size, 3] uint8."""
    pictures = []
    for azimuth_deg in azimuths_deg:
        view = albedo_view(orbit.camera(azimuth_deg), jnp.array(WHITE))
        pictures.append(to_uint8(render_image(scene, params, view, size, step).image))
    return np.concatenate(pictures, axis=1)


def contact_sheet(
    scene: Scene,
    params: Any,
    size: int,
    step: int,
    orbit: Orbit,
) -> np.ndarray:
    """[3 size, 9 size, 3] uint8: columns, eight azimuths and overhead; rows, softly lit colour,
    normals (x, y, z of the world as red, green, blue) and opacity."""
    cameras = [orbit.camera(azimuth_deg) for azimuth_deg in SHEET_AZIMUTHS_DEG]
    columns = []
    for camera in [*cameras, orbit.camera(0.0, OVERHEAD_DEG)]:
        view = lit_view(camera, jnp.array(WHITE), ambient=AMBIENT, diffuse=DIFFUSE)
        picture = render_image(scene, params, view, size, step)
        normals = 0.5 * (picture.normals + 1.0)
        opacity = np.broadcast_to(picture.opacity[..., None], picture.image.shape)
        columns.append(to_uint8(np.concatenate([picture.image, normals, opacity])))
    return np.concatenate(columns, axis=1)


def turntable(
    scene: Scene,
    params: Any,
    size: int,
    frames: int,
    step: int,
    orbit: Orbit,
) -> list[np.ndarray]:
    """The softly lit scene once around: `frames` pictures [size, size, 3] uint8."""
    pictures = []
    for i in range(frames):
        camera = orbit.camera(360.0 * i / frames)
        view = lit_view(camera, jnp.array(WHITE), ambient=AMBIENT, diffuse=DIFFUSE)
        pictures.append(to_uint8(render_image(scene, params, view, size, step).image))
    return pictures


def to_uint8(image: jax.Array | np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255."""
    return np.asarray(np.clip(np.asarray(image), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def write_png(path: AnyPath, picture: np.ndarray) -> None:
    """Writes a picture whole or not at all, so that whoever watches it never sees half of one."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    write_whole(path, png.getvalue())


def write_pictures(
    workdir: AnyPath, scene: Scene, params: Any, step: int, config: Config
) -> list[AnyPath]:
    """Writes the contact sheet and the turntable; returns their paths."""
    settings, orbit = config.run, training_orbit(config.camera)
    sheet, movie, gif = (workdir / name for name in PICTURE_FILES)
    write_png(sheet, contact_sheet(scene, params, settings.sheet_size, step, orbit))
    size, frames = settings.turntable_size, settings.turntable_frames
    pictures = turntable(scene, params, size, frames, step, orbit)
    write_whole(movie, encode_mp4(pictures))
    write_whole(gif, encode_gif(pictures))
    return [sheet, movie, gif]


def encode_mp4(pictures: list[np.ndarray]) -> bytes:
    """H.264 at `TURNTABLE_FPS` of pictures [H, W, 3] uint8 with even sides."""
    with warnings.catch_warnings():
        # JAX warns of forks, but the fork that starts ffmpeg becomes another program at once.
        warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
        # Without macro_block_size=1 imageio would stretch sizes that are no multiple of 16.
        settings: dict[str, Any] = {"fps": TURNTABLE_FPS, "quality": 8, "macro_block_size": 1}
        return imageio.mimwrite("<bytes>", pictures, format="mp4", **settings)


def encode_gif(pictures: list[np.ndarray]) -> bytes:
    """A GIF of pictures [H, W, 3] uint8 that starts again at its end."""
    settings: dict[str, Any] = {"duration": 1000.0 / TURNTABLE_FPS, "loop": 0}
    return imageio.mimwrite("<bytes>", pictures, format="gif", **settings)


def main() -> int:
    workdir = as_path(flags.FLAGS.workdir)
    check_places(workdir)
    config, scene, state = load_run(workdir)
    if configs.is_flat(config):
        raise UserError(f"--workdir={workdir} holds a flat picture; there are no sides to render.")
    config = configs.override_run(config, _FLAGS)
    made = write_pictures(workdir, scene, state.params, int(state.step), config)
    print("Made " + ", ".join(map(str, made)))
    return 0


if __name__ == "__main__":
    configs.define_flags(_FLAGS)
    entry.run(main)
