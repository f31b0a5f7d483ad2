"""A browser's window: its camera, and the sizes of the images that are rendered for it.

Viser's cameras face along +z with x right and y down (the OpenCV convention), this package's along
-z with y up.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.cameras import Camera

Size = tuple[int, int]  # height, width

MIN_SIDE = 48  # pixels of an image's longer side
_STEP = 2  # ratio of the sides of one pass and the next


class Window(NamedTuple):
    """A browser's window as viser describes it.

    Attributes:
      wxyz: [4] unit quaternion, camera to world.
      position: [3] position of the camera.
      fov: vertical field of view in radians.
      height, width: size of the window in pixels.
    """

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    height: int
    width: int


def window_camera(window: Window) -> Camera:
    """Returns the camera of an image that fills the window."""
    w, x, y, z = window.wxyz
    right = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    down = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    forward = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    pose = np.stack([right, np.negative(down), np.negative(forward), window.position], axis=-1)
    focal = 0.5 * window.height / window.width / math.tan(0.5 * window.fov)
    return Camera(jnp.asarray(pose, jnp.float32), jnp.float32(focal), jnp.zeros(2))


def vertical_fov(fov_deg: float, height: int, width: int) -> float:
    """Computes the vertical field of view, in radians, if the shorter side has `fov_deg`."""
    half = math.tan(0.5 * math.radians(fov_deg))
    return 2.0 * math.atan(half * max(height / width, 1.0))


def pass_sizes(window: Size, sharpest: int, pixels: float) -> list[Size]:
    """Lists the sizes of successive images, from coarse to sharp, with the window's aspect.

    Args:
      window: height and width in pixels; no image has more.
      sharpest: longer side of the last image.
      pixels: most pixels of the first image, whose longer side is at least `MIN_SIDE`.
    """
    longer = max(window)
    last = min(sharpest, longer)
    # The longer side of an image with that many pixels.
    side = math.isqrt(int(pixels * longer / min(window)))
    sides = [min(max(side, MIN_SIDE), last)]
    # A gain of less than half a step is not worth a pass of its own.
    while sides[-1] * (_STEP + 0.5) < last:
        sides.append(sides[-1] * _STEP)
    if sides[-1] < last:
        sides.append(last)
    return [_scaled(window, side / longer) for side in sides]


def _scaled(window: Size, scale: float) -> Size:
    height, width = (max(round(scale * side), 1) for side in window)
    return height, width


class RenderRequest(NamedTuple):
    """An image to render.

    Attributes:
      number: counts the starts of the queue.
      size: height and width in pixels.
      stage: the index of the pass, from coarse to sharp.
      is_last: whether it is the sharpest.
    """

    number: int
    size: Size
    stage: int
    is_last: bool


class ProgressiveQueue:
    """The images still to be rendered for one window; a new start drops those of the old one.

    Filled by the thread that handles the browser's messages, emptied by the one that renders.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number, self._stage = 0, 0
        self._sizes: list[Size] = []

    def start(self, sizes: list[Size]) -> None:
        """Replaces what is queued by images of these sizes."""
        with self._lock:
            self._number, self._stage, self._sizes = self._number + 1, 0, sizes

    def next(self) -> RenderRequest | None:
        """Returns the next image to render, if any; it stays queued until `done`."""
        with self._lock:
            if self._stage == len(self._sizes):
                return None
            is_last = self._stage + 1 == len(self._sizes)
            return RenderRequest(self._number, self._sizes[self._stage], self._stage, is_last)

    def is_current(self, request: RenderRequest) -> bool:
        """Returns whether there was no new start since the request."""
        return request.number == self._number

    def done(self, request: RenderRequest) -> None:
        """Advances to the next size, unless there was a new start meanwhile."""
        with self._lock:
            if request.number == self._number:
                self._stage = request.stage + 1
