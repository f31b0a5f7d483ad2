"""One browser tab: its controls, its camera, and its images."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable

import numpy as np
import viser
from viser import transforms

from dreamfusion_jax.config.folder_names import slug
from dreamfusion_jax.mesh.formats import WORLD_TO_GLTF
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runtime.device import platform
from dreamfusion_jax.runtime.png import encode_png
from dreamfusion_jax.viewer.renderer import MODES, Renderer, ViewSettings
from dreamfusion_jax.viewer.window import (
    ProgressiveQueue,
    RenderRequest,
    Size,
    Window,
    pass_sizes,
    vertical_fov,
)
from dreamfusion_jax.viewer.workdir_watcher import WorkdirWatcher

MESH = "mesh"
_SIDES = (128, 256, 384, 512, 768, 1024, 1536)
_SHARPEST_CPU, _SHARPEST = 512, 1024
# Larger images are sent as JPEG, whose artifacts do not show there; encoding PNG would take longer.
_LOSSLESS_PIXELS = 2**19
_JPEG_QUALITY = 92
_RENDER_TIMEOUT_S = 10  # of the browser's own image of the mesh


class Tab:
    """The viewer in one browser tab. Call `draw` from the rendering thread, the rest from any.

    Args:
      client: viser's handle of the tab.
      watcher: watches the work folder.
      renderer: renders its scene.
      orbit: the cameras of the run's images.
      wake: called when there is something to render.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        watcher: WorkdirWatcher,
        renderer: Renderer,
        orbit: images.Orbit,
        wake: Callable[[], object],
    ) -> None:
        self._client, self._watcher, self._renderer, self._wake = client, watcher, renderer, wake
        self._lock, self._queue = threading.RLock(), ProgressiveQueue()
        self._window = _window(client.camera)
        self._selected = 0  # by the slider
        self._step = 0  # of the scene that was requested last
        self._image: np.ndarray | None = None
        self._mesh: tuple[bytes, viser.GlbHandle] | None = None
        self._add_controls()
        self._add_callbacks()
        client.camera.fov = vertical_fov(orbit.fov_deg, self._window.height, self._window.width)
        self._update()

    def _add_controls(self) -> None:
        gui, config = self._client.gui, self._watcher.config
        self._text = gui.add_markdown("")
        self._mode = gui.add_dropdown("show", (*MODES, MESH))
        self._follow = gui.add_checkbox("follow", True, hint="show each new checkpoint")
        self._slider = gui.add_slider(
            "checkpoint", 1, 1, 1, 1, hint="those in the work folder, and those loaded before"
        )
        sharpest = _SHARPEST_CPU if platform() == "cpu" else _SHARPEST
        self._sharpest = gui.add_dropdown(
            "pixels",
            [str(side) for side in _SIDES],
            initial_value=str(sharpest),
            hint="longer side of the image at rest; it is coarser while the camera moves",
        )
        self._color = gui.add_rgb("background", (255, 255, 255))
        is_learned = config.scene.background != "solid"
        self._learned = gui.add_checkbox("learned background", False, visible=is_learned)
        self._save = gui.add_button("Save image")

    def _add_callbacks(self) -> None:
        # Coroutines, which run in the order of the browser's messages.
        @self._client.camera.on_update
        async def _(camera: viser.CameraHandle) -> None:
            window = _window(camera)
            if window != self._window:
                self._window = window
                self._start()

        async def update(event: viser.GuiEvent) -> None:
            self._update()

        async def select(event: viser.GuiEvent) -> None:
            steps = list(self._watcher.snapshot.scenes)
            if event.client is None or not steps:  # not moved by the user
                return
            self._selected = steps[min(int(self._slider.value), len(steps)) - 1]
            self._follow.value = False
            self._update()

        for control in (self._mode, self._follow, self._sharpest, self._color, self._learned):
            control.on_update(update)
        self._slider.on_update(select)
        self._save.on_click(lambda _: self._send_image())

    def renew(self) -> None:
        """Shows a newer scene of the work folder, at once sharp."""
        self._refresh()
        if self._step_to_show() != self._step:
            self._start(moves=not self._step)

    def close(self) -> None:
        """Drops what is being rendered."""
        self._queue.start([])

    def next(self) -> RenderRequest | None:
        """Returns what to render next, if anything."""
        return self._queue.next()

    def draw(self, request: RenderRequest) -> None:
        """Renders and shows one image, unless it is out of date before it is done."""
        step, settings = self._step, self._view_settings()
        params = self._watcher.snapshot.scenes.get(step)
        if params is not None:
            wanted = functools.partial(self._queue.is_current, request)
            image = self._renderer.draw(settings, request.size, params, step, wanted)
            if image is None or not wanted():
                return
            self._image = image
            self._show(image)
        self._queue.done(request)

    def _step_to_show(self) -> int:
        """Returns the step of the scene to show; 0 if there is none."""
        steps = self._watcher.snapshot.scenes
        is_selected = self._selected in steps and not self._follow.value
        return self._selected if is_selected else max(steps, default=0)

    def _view_settings(self) -> ViewSettings:
        color = tuple(channel / 255.0 for channel in self._color.value)
        return ViewSettings(self._mode.value, self._window, None if self._learned.value else color)

    def _update(self) -> None:
        self._refresh()
        self._start()

    def _start(self, moves: bool = True) -> None:
        """Requests new images: where something moves, coarse ones first."""
        self._step = self._step_to_show()
        sizes: list[Size] = []
        if self._step and self._mode.value != MESH:
            window, pixels = self._window, self._renderer.moving_pixels(self._mode.value)
            sizes = pass_sizes((window.height, window.width), int(self._sharpest.value), pixels)
        self._queue.start(sizes if moves else sizes[-1:])
        self._wake()

    def _refresh(self) -> None:
        """Updates controls, text and mesh from the work folder and the controls."""
        with self._lock, self._client.atomic():
            snapshot, step = self._watcher.snapshot, self._step_to_show()
            steps = list(snapshot.scenes)
            self._slider.max = max(len(steps), 1)
            if step:
                self._slider.value = steps.index(step) + 1
            self._text.content = self._describe(step)
            self._refresh_mesh(snapshot.mesh)

    def _refresh_mesh(self, data: bytes | None) -> None:
        if self._mesh and self._mesh[0] is not data:
            self._mesh[1].remove()
            self._mesh = None
        is_wanted = self._mode.value == MESH
        if is_wanted and data and not self._mesh:
            rotation = transforms.SO3.from_matrix(WORLD_TO_GLTF.T).wxyz
            scene = self._client.scene
            self._mesh = data, scene.add_glb("/mesh", data, wxyz=rotation, receive_shadow=False)
        if self._mesh:
            self._mesh[1].visible = is_wanted
        if is_wanted:
            self._show(np.full((2, 2, 3), self._color.value, np.uint8))

    def _show(self, image: np.ndarray) -> None:
        is_small = image.size <= 3 * _LOSSLESS_PIXELS
        self._client.scene.set_background_image(
            image, "png" if is_small else "jpeg", jpeg_quality=_JPEG_QUALITY
        )

    def _describe(self, step: int) -> str:
        snapshot, config = self._watcher.snapshot, self._watcher.config
        lines = [f"**{_plain(config.train.prompt)}**", _plain(snapshot.progress)]
        if step:
            lines.append(f"Shown: step {step:,}.")
        else:
            every = min(config.run.checkpoint_every, config.train.steps)
            lines.append(f"Waiting for the first checkpoint, which comes after step {every:,}.")
        if self._mode.value == MESH:
            lines.append(
                "The mesh is mesh\\.glb, as last exported."
                if snapshot.mesh
                else "There is no mesh\\.glb yet. The run makes it at its end;"
                " `python -m dreamfusion_jax.export` makes it now."
            )
        return "\n\n".join(filter(None, [*lines, _plain(snapshot.error)]))

    def _send_image(self) -> None:
        """Sends the current image to the browser as a file."""
        mode, image = self._mode.value, self._image
        if mode == MESH:
            height, width = self._window.height, self._window.width
            try:
                image = self._client.get_render(
                    height, width, transport_format="png", timeout=_RENDER_TIMEOUT_S
                )
            except (TimeoutError, RuntimeError):
                return  # The browser is busy, or gone.
        if image is not None:
            name = f"{slug(self._watcher.config.train.prompt)}-{self._step}-{mode}.png"
            png = encode_png(image)
            self._client.send_file_download(name, png, save_immediately=True)


def _window(camera: viser.CameraHandle) -> Window:
    wxyz, position = (tuple(map(float, x)) for x in (camera.wxyz, camera.position))
    # A hidden window has no size.
    height, width = max(camera.image_height, 1), max(camera.image_width, 1)
    return Window(wxyz, position, float(camera.fov), height, width)


def _plain(text: str) -> str:
    """Escapes text for Markdown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
