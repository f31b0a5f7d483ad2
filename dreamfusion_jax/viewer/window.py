"""A browser's window: as a camera, and the sizes of the pictures that are made for it.

Viser's cameras look along their own +z axis with x right and y down (the OpenCV convention), ours
along -z with y up.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.cameras import Camera

Size = tuple[int, int]  # height, width

LEAST_SIDE = 48  # of a picture's longer side: less shows nothing
_STEP = 2  # from a pass to the next one, each side


class Window(NamedTuple):
    """What a browser's window shows of the world.

    Attributes:
      wxyz: [4] unit quaternion, camera to world.
      position: [3] of the camera.
      fov: vertical field of view in radians.
      height, width: of the window in pixels.
    """

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    height: int
    width: int


def window_camera(window: Window) -> Camera:
    """The camera of a picture that fills the window."""
    w, x, y, z = window.wxyz
    right = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    down = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    forward = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    pose = np.stack([right, np.negative(down), np.negative(forward), window.position], axis=-1)
    focal = 0.5 * window.height / window.width / math.tan(0.5 * window.fov)
    return Camera(jnp.asarray(pose, jnp.float32), jnp.float32(focal), jnp.zeros(2))


def vertical_fov(fov_deg: float, height: int, width: int) -> float:
    """The window's vertical field of view, in radians, when its shorter side sees `fov_deg`."""
    half = math.tan(0.5 * math.radians(fov_deg))
    return 2.0 * math.atan(half * max(height / width, 1.0))


def pass_sizes(window: Size, sharpest: int, pixels: float) -> list[Size]:
    """The sizes of one picture after the other, from coarse to sharp, with the window's aspect.

    Args:
      window: height and width in pixels; no picture has more.
      sharpest: longer side of the last one.
      pixels: that the first one may have, but its longer side is never below `LEAST_SIDE`.
    """
    longer = max(window)
    last = min(sharpest, longer)
    # As many pixels as allowed, at this aspect.
    side = math.isqrt(int(pixels * longer / min(window)))
    sides = [min(max(side, LEAST_SIDE), last)]
    # Half a step more is not worth a pass of its own.
    while sides[-1] * (_STEP + 0.5) < last:
        sides.append(sides[-1] * _STEP)
    if sides[-1] < last:
        sides.append(last)
    return [_scaled(window, side / longer) for side in sides]


def _scaled(window: Size, scale: float) -> Size:
    height, width = (max(round(scale * side), 1) for side in window)
    return height, width


class RenderRequest(NamedTuple):
    """A picture to draw: its size, how many of its kind went before, whether it is the last one."""

    number: int
    size: Size
    stage: int
    is_last: bool


class ProgressiveQueue:
    """The pictures still to be drawn of one window; a new start drops what is left of the old one.

    Started from the thread that hears the browser, emptied by the one that draws.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number, self._stage = 0, 0
        self._sizes: list[Size] = []

    def start(self, sizes: list[Size]) -> None:
        with self._lock:
            self._number, self._stage, self._sizes = self._number + 1, 0, sizes

    def next(self) -> RenderRequest | None:
        with self._lock:
            if self._stage == len(self._sizes):
                return None
            is_last = self._stage + 1 == len(self._sizes)
            return RenderRequest(self._number, self._sizes[self._stage], self._stage, is_last)

    def is_current(self, turn: RenderRequest) -> bool:
        return turn.number == self._number

    def done(self, turn: RenderRequest) -> None:
        """The next size is due, unless there was a new start meanwhile."""
        with self._lock:
            if turn.number == self._number:
                self._stage = turn.stage + 1
