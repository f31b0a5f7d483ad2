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
from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import View, albedo_view, lit_view
from dreamfusion_jax.runtime.device import platform
from dreamfusion_jax.runtime.finite import require_finite

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
# Of these, the ones that light does not change. They are rendered unlit, which saves the normals.
UNLIT = ("albedo", "depth", "opacity")
# Side of the tiles of an image, in pixels.
_TILE_CPU = 64
_TILE = 256
# Gray of the farthest depth, to tell it from the black background.
_FAR_GRAY = 0.15

# Called after each tile.
Tick = Callable[[], object]


def _noop() -> None:
    """Does nothing."""


class Orbit(NamedTuple):
    """Distance and field of view of the cameras of all images; by default the toybox's."""

    distance: float = 2.75
    fov_deg: float = 47.5

    def camera(self, azimuth_deg: float, elevation_deg: float = ELEVATION_DEG) -> Camera:
        """Returns the camera at these angles in degrees, by default a little above the object."""
        return orbit_camera(azimuth_deg, elevation_deg, self.distance, self.fov_deg)


def training_orbit(config: CameraRanges) -> Orbit:
    """Returns the middle of the ranges of the training cameras."""
    fov_deg = sum(config.fov_deg) / 2
    if config.focal_multiplier[1] > 0.0:
        fov_deg = 2.0 * math.degrees(math.atan(1.0 / sum(config.focal_multiplier)))
    return Orbit(sum(config.distance) / 2, fov_deg)


class RenderedImage(NamedTuple):
    """A render as numpy arrays: image, normals [H, W, 3]; opacity, depth [H, W]."""

    image: np.ndarray
    opacity: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


def render_image(
    scene: Scene, params: Params, view: View, size: int, step: int, tick: Tick = _noop
) -> RenderedImage:
    """Renders one view at `size` x `size` pixels, deterministically.

    Larger images are assembled from tiles, so that one compiled program serves all sizes.
    """
    side = size if scene.flat else tile_side(size)
    return render_tiles(scene, params, view, (size, size), side, step, tick)


def render_tiles(
    scene: Scene,
    params: Params,
    view: View,
    size: tuple[int, int],
    side: int,
    step: int,
    tick: Tick = _noop,
) -> RenderedImage:
    """Renders an image of any height and width, deterministically, from square tiles.

    Args:
      size: height and width in pixels.
      side: of a tile, in pixels; each value compiles one program.
      tick: called after each tile; an exception from it ends the rendering.
    """
    height, width = size
    rows, columns = range(0, height, side), range(0, width, side)
    params = jax.device_put(params)
    rendered: list[tuple[jax.Array, ...]] = []
    for row, column in itertools.product(rows, columns):
        rendered.append(_render_tile(scene, params, view, height, width, side, row, column, step))
        # Queues one tile ahead of the device; any further, `tick` would report progress too early.
        jax.block_until_ready(rendered[-2:-1])
        tick()

    def join(*pieces: jax.Array) -> np.ndarray:
        strips = (pieces[i : i + len(columns)] for i in range(0, len(pieces), len(columns)))
        whole = np.concatenate([np.concatenate(strip, axis=1) for strip in strips])
        return whole[:height, :width]

    return RenderedImage(*map(join, *rendered))


def tile_side(size: int) -> int:
    """Returns the side of the tiles of an image of at least this side."""
    return min(_TILE_CPU if platform() == "cpu" else _TILE, size)


def tiles(size: int) -> int:
    """Returns the number of tiles of a square image of this side."""
    return math.ceil(size / tile_side(size)) ** 2


@functools.partial(jax.jit, static_argnames=("scene", "side"))
def _render_tile(
    scene: Scene,
    params: Params,
    view: View,
    height: jax.Array,
    width: jax.Array,
    side: int,
    row: jax.Array,
    column: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, ...]:
    view = view._replace(camera=crop(view.camera, height, width, side, row, column))
    render = scene.render(params, view, side, side, step, None)
    return render.image, render.opacity, render.depth, render.normals


def preview(
    scene: Scene,
    params: Params,
    size: int,
    step: int,
    orbit: Orbit,
    azimuths_deg: Sequence[float] = PREVIEW_AZIMUTHS_DEG,
) -> np.ndarray:
    """Renders the albedo from A azimuths in a row: [size, A size, 3] uint8."""
    params = jax.device_put(params)  # once, not per image
    sides = []
    for azimuth_deg in azimuths_deg:
        view = albedo_view(orbit.camera(azimuth_deg), jnp.array(WHITE))
        sides.append(rounded(render_image(scene, params, view, size, step).image))
    return np.concatenate(sides, axis=1)


def poster(
    scene: Scene, params: Params, size: int, step: int, orbit: Orbit, tick: Tick = _noop
) -> np.ndarray:
    """Renders the softly lit scene from between front and side: [size, size, 3] uint8."""
    view = soft_view(orbit.camera(POSTER_AZIMUTH_DEG))
    return to_uint8(render_image(scene, params, view, size, step, tick).image)


def render_view(
    scene: Scene,
    params: Params,
    camera: Camera,
    size: int,
    step: int,
    show: str = "color",
    background: Sequence[float] = WHITE,
) -> np.ndarray:
    """Renders the image of one camera, [size, size, 3] uint8.

    Args:
      show: one of `SHOWN`: "color", softly lit; "albedo", unlit; "normals", x, y, z of the world
        as red, green, blue; "depth", near is light and far dark; "opacity".
      background: RGB in [0, 1], of "color" and "albedo".
    """
    view = view_to_show(show, camera, background)
    return as_colors(show, render_image(scene, params, view, size, step))


def view_to_show(show: str, camera: Camera, background: Sequence[float] = WHITE) -> View:
    """Returns the view whose render `as_colors` shows: unlit if `UNLIT` has it, else softly lit."""
    if show in UNLIT:
        return albedo_view(camera, jnp.array(background))
    return soft_view(camera, background)


def as_colors(show: str, image: RenderedImage) -> np.ndarray:
    """Returns the image's colors, or its normals, depth or opacity as colors: [H, W, 3] uint8."""
    match show:
        case "normals":
            return to_uint8(normals_as_color(image.normals))
        case "depth":
            return depth_images([image.depth], [image.opacity])[0]
        case "opacity":
            return to_uint8(np.repeat(image.opacity[..., None], 3, axis=-1))
    return to_uint8(image.image)


def contact_sheet(
    scene: Scene, params: Params, size: int, step: int, orbit: Orbit, tick: Tick = _noop
) -> np.ndarray:
    """Renders the scene from eight azimuths and overhead: [3 size, 9 size, 3] uint8.

    The rows are softly lit color, normals (world x, y, z as red, green, blue) and opacity.
    """
    params = jax.device_put(params)  # once, not per image
    cameras = [orbit.camera(azimuth_deg) for azimuth_deg in SHEET_AZIMUTHS_DEG]
    columns = []
    for camera in [*cameras, orbit.camera(0.0, OVERHEAD_DEG)]:
        render = render_image(scene, params, soft_view(camera), size, step, tick)
        opacity = np.broadcast_to(render.opacity[..., None], render.image.shape)
        rows = [render.image, normals_as_color(render.normals), opacity]
        columns.append(to_uint8(np.concatenate(rows)))
    return np.concatenate(columns, axis=1)


class Turntable(NamedTuple):
    """Frames of a full turn around a scene, F images [N, N, 3] uint8 of each kind.

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
    params: Params,
    size: int,
    frames: int,
    step: int,
    orbit: Orbit,
    tick: Tick = _noop,
) -> Turntable:
    """Renders a full turn: each of the F = `frames` views once, for all kinds of images."""
    params = jax.device_put(params)  # once, not per image
    color, normals, depth, opacity = [], [], [], []
    for i in range(frames):
        view = soft_view(orbit.camera(360.0 * i / frames))
        render = render_image(scene, params, view, size, step, tick)
        color.append(to_uint8(render.image))
        normals.append(to_uint8(normals_as_color(render.normals)))
        # All frames are held until their common range is known; float16 suffices for 256 grays.
        depth.append(render.depth.astype(np.float16))
        opacity.append(render.opacity.astype(np.float16))
    return Turntable(color, depth_images(depth, opacity), normals)


def depth_images(depth: list[np.ndarray], opacity: list[np.ndarray]) -> list[np.ndarray]:
    """Maps depths [N, N] to grays [N, N, 3] uint8, from near (light) to far (dark), on black.

    The range covers the opaque pixels of all images, so that a gray means the same depth in each.
    """
    opaque = [d[o > 0.5] for d, o in zip(depth, opacity, strict=True)]
    near = min((float(d.min()) for d in opaque if d.size), default=0.0)
    far = max((float(d.max()) for d in opaque if d.size), default=1.0)
    images = []
    for d, o in zip(depth, opacity, strict=True):
        relative = np.clip((d.astype(np.float32) - near) / max(far - near, 1e-6), 0.0, 1.0)
        gray = to_uint8(o * (1.0 - (1.0 - _FAR_GRAY) * relative))
        images.append(np.repeat(gray[..., None], 3, axis=-1))
    return images


def soft_view(camera: Camera, background: Sequence[float] = WHITE) -> View:
    """Returns the view of the softly lit scene on a solid background."""
    return lit_view(camera, jnp.array(background), ambient=AMBIENT, diffuse=DIFFUSE)


def normals_as_color(normals: np.ndarray) -> np.ndarray:
    """Maps world x, y, z to red, green, blue in [0, 1]; gray where there is nothing."""
    return 0.5 * (normals + 1.0)


def to_uint8(image: jax.Array | np.ndarray) -> np.ndarray:
    """Rounds values in [0, 1] to 0..255, clipping the rest. Raises a RunError for NaN."""
    remedy = "what it shows was not optimized soundly: start again in another folder"
    return rounded(require_finite(image, "The image", remedy))


def rounded(image: jax.Array | np.ndarray) -> np.ndarray:
    """Rounds as `to_uint8`, and makes black what is not a number, for images of a run's middle."""
    numbers = np.clip(np.nan_to_num(np.asarray(image)), 0.0, 1.0)
    return np.asarray(numbers * 255.0 + 0.5).astype(np.uint8)


def image_grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Joins rows of images [B, H, W, 3] in [0, 1] to one uint8 image [rows * H, B * W, 3]."""
    return to_uint8(np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0))


def encode_mp4(frames: list[np.ndarray]) -> bytes:
    """Encodes frames [H, W, 3] uint8 with even sides as H.264 at `TURNTABLE_FPS`."""
    with warnings.catch_warnings():
        # JAX warns of forks, but the one that starts ffmpeg calls exec at once.
        warnings.filterwarnings("ignore", message=r"os\.fork", category=RuntimeWarning)
        # Without macro_block_size=1 imageio resizes to multiples of 16.
        settings: dict[str, Any] = {"fps": TURNTABLE_FPS, "quality": 8, "macro_block_size": 1}
        return imageio.mimwrite("<bytes>", frames, format="mp4", **settings)


def encode_gif(frames: list[np.ndarray]) -> bytes:
    """Encodes frames [H, W, 3] uint8 as a looping GIF."""
    settings: dict[str, Any] = {"duration": 1000.0 / TURNTABLE_FPS, "loop": 0}
    return imageio.mimwrite("<bytes>", frames, format="gif", **settings)
