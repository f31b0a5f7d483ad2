"""Renders the NeRF for a browser's window, in several modes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import View
from dreamfusion_jax.rendering import images
from dreamfusion_jax.viewer.window import Size, Window, window_camera

MODES = ("shaded", "albedo", "normals", "opacity", "depth")
# The time for an image while the camera moves.
_MOVING_SECONDS = 0.1
_LARGE = 4096  # pixels of a side, for which tiles have their greatest size
_DECAY = 0.7  # share of the old estimate of the speed that a new image leaves


class ViewSettings(NamedTuple):
    """What to render.

    Attributes:
      mode: one of `MODES`.
      window: the window whose camera is used.
      background: [3] RGB in [0, 1]; None for the scene's own, learned one.
    """

    mode: str
    window: Window
    background: tuple[float, ...] | None


class Renderer:
    """Renders images of one scene by one compiled program, and estimates its speed."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self._side = scene, images.tile_side(_LARGE)
        self._pixel_seconds = {True: 0.0, False: 0.0}  # lit, unlit

    def compile(self, params: Any) -> None:
        """Compiles the program, and measures its speed lit and unlit.

        Args:
          params: any parameters of the scene.
        """
        size = self._side, self._side
        for mode in ("shaded", "albedo"):
            view = images.view_to_show(mode, images.Orbit().camera(0.0))
            for _ in range(2):  # The first time includes compilation.
                started = time.monotonic()
                images.render_tiles(self._scene, params, view, size, self._side, 0)
            seconds = time.monotonic() - started
            self._pixel_seconds[_is_lit(mode)] = seconds / self._side**2

    def moving_pixels(self, mode: str) -> float:
        """Returns how many pixels can be rendered in time while the camera moves."""
        return _MOVING_SECONDS / max(self._pixel_seconds[_is_lit(mode)], 1e-9)

    def draw(
        self,
        settings: ViewSettings,
        size: Size,
        params: Any,
        step: int,
        is_wanted: Callable[[], bool],
    ) -> np.ndarray | None:
        """Renders an image [*size, 3] uint8; None where `is_wanted` turned false meanwhile."""

        def tick() -> None:
            if not is_wanted():
                raise _Unwanted

        started = time.monotonic()
        try:
            view = make_view(settings)
            image = images.render_tiles(self._scene, params, view, size, self._side, step, tick)
        except _Unwanted:
            return None
        self._learn_speed(settings.mode, (time.monotonic() - started) / (size[0] * size[1]))
        # A view is one of many, so that a pixel without a number is only black.
        return images.as_colors(settings.mode, type(image)(*map(np.nan_to_num, image)))

    def _learn_speed(self, mode: str, pixel_seconds: float) -> None:
        lit = _is_lit(mode)
        before = self._pixel_seconds[lit]
        self._pixel_seconds[lit] = before + (1.0 - _DECAY) * (pixel_seconds - before)


class _Unwanted(Exception):
    """Raised to stop rendering an image that is out of date."""


def make_view(settings: ViewSettings) -> View:
    """Builds the view for a mode; only lit ones have normals."""
    view = images.view_to_show(settings.mode, window_camera(settings.window))
    if settings.background is None:
        return view._replace(solid_background=jnp.asarray(False))
    return view._replace(background=jnp.asarray(settings.background, jnp.float32))


def _is_lit(mode: str) -> bool:
    return mode not in images.UNLIT
