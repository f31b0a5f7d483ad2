"""Images of a scene: preview, poster, contact sheet, turntables of color, depth and normals."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.cameras import Camera, CameraRanges, crop, orbit_camera
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import View, albedo_view, lit_view
from dreamfusion_jax.runtime.device import platform

ELEVATION_DEG = 20.0
OVERHEAD_DEG = 90.0
POSTER_AZIMUTH_DEG = 35.0  # front and one side
PREVIEW_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
SHEET_AZIMUTHS_DEG = tuple(45.0 * i for i in range(8))
TURNTABLE_FPS = 16
# Mostly ambient: the light should show the shape without hiding the color.
AMBIENT, DIFFUSE = 0.6, 0.4
WHITE = (1.0, 1.0, 1.0)
SHOWN = ("color", "albedo", "normals", "depth", "opacity")
# Of these, what light would change nothing of. It costs the normals, so it is left out.
UNLIT = ("albedo", "depth", "opacity")
# Side of the tiles of a picture, in pixels.
_TILE_CPU = 64
_TILE = 256
# The far end of a depth picture's range, lest it be lost in the black background.
_FAR_GRAY = 0.15

# Called whenever a tile is done.
Tick = Callable[[], object]


def _noop() -> None:
    """Nobody is told."""


class Orbit(NamedTuple):
    """How far and how wide the cameras of all pictures are; by default as the toybox's own."""

    distance: float = 2.75
    fov_deg: float = 47.5

    def camera(self, azimuth_deg: float, elevation_deg: float = ELEVATION_DEG) -> Camera:
        """The camera on the given side (degrees), a little above the object."""
        return orbit_camera(azimuth_deg, elevation_deg, self.distance, self.fov_deg)


def training_orbit(config: CameraRanges) -> Orbit:
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


def render_image(
    scene: Scene, params: Any, view: View, size: int, step: int, tick: Tick = _noop
) -> Picture:
    """A picture of `size` x `size` pixels of one view, deterministic.

    Larger ones are put together from tiles, so that one compiled program serves all sizes.
    """
    side = size if scene.flat else tile_side(size)
    return render_tiles(scene, params, view, (size, size), side, step, tick)


def render_tiles(
    scene: Scene,
    params: Any,
    view: View,
    size: tuple[int, int],
    side: int,
    step: int,
    tick: Tick = _noop,
) -> Picture:
    """A picture of any height and width, deterministic, put together from square tiles.

    Args:
      size: height and width in pixels.
      side: of a tile, in pixels; a program is compiled for each that was ever asked for.
      tick: what it raises ends the rendering between two tiles.
    """
    height, width = size
    rows, columns = range(0, height, side), range(0, width, side)
    params = jax.device_put(params)
    tiles: list[tuple[jax.Array, ...]] = []
    for row, column in itertools.product(rows, columns):
        tiles.append(_render_tile(scene, params, view, height, width, side, row, column, step))
        # The next tile is handed over while this one is drawn; further ahead, `tick` would lie.
        jax.block_until_ready(tiles[-2:-1])
        tick()

    def join(*pieces: jax.Array) -> np.ndarray:
        strips = (pieces[i : i + len(columns)] for i in range(0, len(pieces), len(columns)))
        whole = np.concatenate([np.concatenate(strip, axis=1) for strip in strips])
        return whole[:height, :width]

    return Picture(*map(join, *tiles))


def tile_side(size: int) -> int:
    """Side of the tiles of a picture of this side, or of one at least as large."""
    return min(_TILE_CPU if platform() == "cpu" else _TILE, size)


def tiles(size: int) -> int:
    """How many tiles a picture of this side has."""
    return math.ceil(size / tile_side(size)) ** 2


@functools.partial(jax.jit, static_argnames=("scene", "side"))
def _render_tile(
    scene: Scene,
    params: Any,
    view: View,
    height: jax.Array,
    width: jax.Array,
    side: int,
    row: jax.Array,
    column: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, ...]:
    view = view._replace(camera=crop(view.camera, height, width, side, row, column))
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


def poster(
    scene: Scene, params: Any, size: int, step: int, orbit: Orbit, tick: Tick = _noop
) -> np.ndarray:
    """The softly lit scene from the front and one side: [size, size, 3] uint8."""
    view = soft_view(orbit.camera(POSTER_AZIMUTH_DEG))
    return to_uint8(render_image(scene, params, view, size, step, tick).image)


def render_view(
    scene: Scene,
    params: Any,
    camera: Camera,
    size: int,
    step: int,
    show: str = "color",
    background: Sequence[float] = WHITE,
) -> np.ndarray:
    """What one camera sees, [size, size, 3] uint8.

    Args:
      show: one of `SHOWN`: "color", softly lit; "albedo", unlit; "normals", x, y, z of the world
        as red, green, blue; "depth", near is light and far dark; "opacity".
      background: behind the two that have colors, RGB in [0, 1].
    """
    view = view_to_show(show, camera, background)
    return as_colors(show, render_image(scene, params, view, size, step))


def view_to_show(show: str, camera: Camera, background: Sequence[float] = WHITE) -> View:
    """What is to be rendered so that `as_colors` can show it: softly lit, but for what `UNLIT`
    names."""
    if show in UNLIT:
        return albedo_view(camera, jnp.array(background))
    return soft_view(camera, background)


def as_colors(show: str, picture: Picture) -> np.ndarray:
    """Normals, depth or opacity of a picture, or else its own colors, [H, W, 3] uint8."""
    match show:
        case "normals":
            return to_uint8(normals_as_color(picture.normals))
        case "depth":
            return depth_pictures([picture.depth], [picture.opacity])[0]
        case "opacity":
            return to_uint8(np.repeat(picture.opacity[..., None], 3, axis=-1))
    return to_uint8(picture.image)


def contact_sheet(
    scene: Scene, params: Any, size: int, step: int, orbit: Orbit, tick: Tick = _noop
) -> np.ndarray:
    """[3 size, 9 size, 3] uint8: columns, eight azimuths and overhead; rows, softly lit color,
    normals (x, y, z of the world as red, green, blue) and opacity."""
    cameras = [orbit.camera(azimuth_deg) for azimuth_deg in SHEET_AZIMUTHS_DEG]
    columns = []
    for camera in [*cameras, orbit.camera(0.0, OVERHEAD_DEG)]:
        picture = render_image(scene, params, soft_view(camera), size, step, tick)
        opacity = np.broadcast_to(picture.opacity[..., None], picture.image.shape)
        shown = [picture.image, normals_as_color(picture.normals), opacity]
        columns.append(to_uint8(np.concatenate(shown)))
    return np.concatenate(columns, axis=1)


class Turntable(NamedTuple):
    """A scene once around, F pictures [N, N, 3] uint8 of each kind.

    Attributes:
      color: softly lit, on white.
      depth: near is light, far is dark, on black.
      normals: x, y, z of the world as red, green, blue, on gray.
    """

    color: list[np.ndarray]
    depth: list[np.ndarray]
    normals: list[np.ndarray]


def turntable(
    scene: Scene,
    params: Any,
    size: int,
    frames: int,
    step: int,
    orbit: Orbit,
    tick: Tick = _noop,
) -> Turntable:
    """All kinds of pictures from one render of each of the F = `frames` views."""
    color, normals, depth, opacity = [], [], [], []
    for i in range(frames):
        view = soft_view(orbit.camera(360.0 * i / frames))
        picture = render_image(scene, params, view, size, step, tick)
        color.append(to_uint8(picture.image))
        normals.append(to_uint8(normals_as_color(picture.normals)))
        # Kept until all are known, so in as few bytes as 256 grays need.
        depth.append(picture.depth.astype(np.float16))
        opacity.append(picture.opacity.astype(np.float16))
    return Turntable(color, depth_pictures(depth, opacity), normals)


def depth_pictures(depth: list[np.ndarray], opacity: list[np.ndarray]) -> list[np.ndarray]:
    """Depths [N, N] as grays [N, N, 3] uint8, from near (light) to far (dark), on black.

    The range is that of what is opaque in any of the pictures, so that a gray means the same depth
    in all of them.
    """
    opaque = [d[o > 0.5] for d, o in zip(depth, opacity, strict=True)]
    near = min((float(d.min()) for d in opaque if d.size), default=0.0)
    far = max((float(d.max()) for d in opaque if d.size), default=1.0)
    pictures = []
    for d, o in zip(depth, opacity, strict=True):
        away = np.clip((d.astype(np.float32) - near) / max(far - near, 1e-6), 0.0, 1.0)
        gray = to_uint8(o * (1.0 - (1.0 - _FAR_GRAY) * away))
        pictures.append(np.repeat(gray[..., None], 3, axis=-1))
    return pictures


def soft_view(camera: Camera, background: Sequence[float] = WHITE) -> View:
    """The softly lit scene on a plain background."""
    return lit_view(camera, jnp.array(background), ambient=AMBIENT, diffuse=DIFFUSE)


def normals_as_color(normals: np.ndarray) -> np.ndarray:
    """x, y, z of the world as red, green, blue in [0, 1]; gray where there is nothing."""
    return 0.5 * (normals + 1.0)


def to_uint8(image: jax.Array | np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255."""
    return np.asarray(np.clip(np.asarray(image), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def image_grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of pictures [B, H, W, 3] in [0, 1] -> one 8-bit picture [rows * H, B * W, 3]."""
    return to_uint8(np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0))


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
