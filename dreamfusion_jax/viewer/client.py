"""One browser tab: its controls, its camera, and what it is shown."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable

import numpy as np
import viser
from viser import transforms

from dreamfusion_jax.config.flags import slug
from dreamfusion_jax.mesh.formats import WORLD_TO_GLTF
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runtime.device import platform
from dreamfusion_jax.runtime.png import encode_png
from dreamfusion_jax.viewer.renderer import MODES, Look, Renderer
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
# Larger pictures are sent as JPEG, whose blocks do not show there; packing PNGs would take longer.
_LOSSLESS_PIXELS = 2**19
_JPEG_QUALITY = 92
_ASKING_S = 10  # for the browser's own picture of the mesh


class Tab:
    """What one browser sees. `draw` is for the thread that draws, the rest for any.

    Args:
      client: where the tab is.
      orbit: from where the pictures of a run are taken.
      wake: called when there is something to draw.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        follower: WorkdirWatcher,
        painter: Renderer,
        orbit: images.Orbit,
        wake: Callable[[], object],
    ) -> None:
        self._client, self._follower, self._painter, self._wake = client, follower, painter, wake
        self._lock, self._passes = threading.RLock(), ProgressiveQueue()
        self._window = _window(client.camera)
        self._chosen = 0  # by the slider
        self._drawn = 0  # the step whose scene was asked for last
        self._picture: np.ndarray | None = None
        self._mesh: tuple[bytes, viser.GlbHandle] | None = None
        self._add_controls()
        self._hear()
        client.camera.fov = vertical_fov(orbit.fov_deg, self._window.height, self._window.width)
        self._look_again()

    def _add_controls(self) -> None:
        gui, config = self._client.gui, self._follower.config
        self._story = gui.add_markdown("")
        self._mode = gui.add_dropdown("show", (*MODES, MESH))
        self._follow = gui.add_checkbox(
            "follow", True, hint="show each new checkpoint as soon as it is there"
        )
        self._slider = gui.add_slider(
            "checkpoint", 1, 1, 1, 1, hint="those in the work folder, and those seen since"
        )
        sharpest = _SHARPEST_CPU if platform() == "cpu" else _SHARPEST
        self._sharpest = gui.add_dropdown(
            "pixels",
            [str(side) for side in _SIDES],
            initial_value=str(sharpest),
            hint="longer side of the picture at rest; a moving one is as coarse as it must be",
        )
        self._color = gui.add_rgb("background", (255, 255, 255))
        has_learned = config.scene.background != "solid"
        self._learned = gui.add_checkbox("learned background", False, visible=has_learned)
        self._save = gui.add_button("Save the picture")

    def _hear(self) -> None:
        # Coroutines, which run in the order of what the browser said.
        @self._client.camera.on_update
        async def _(camera: viser.CameraHandle) -> None:
            window = _window(camera)
            if window != self._window:
                self._window = window
                self._start()

        async def look_again(event: viser.GuiEvent) -> None:
            self._look_again()

        async def choose(event: viser.GuiEvent) -> None:
            steps = list(self._follower.found.scenes)
            if event.client is None or not steps:  # nobody has moved it
                return
            self._chosen = steps[min(int(self._slider.value), len(steps)) - 1]
            self._follow.value = False
            self._look_again()

        for control in (self._mode, self._follow, self._sharpest, self._color, self._learned):
            control.on_update(look_again)
        self._slider.on_update(choose)
        self._save.on_click(lambda _: self._send_picture())

    def renew(self) -> None:
        """Shows what is new in the work folder: a newer scene at once sharp."""
        self._refresh()
        if self._step() != self._drawn:
            self._start(moves=not self._drawn)

    def close(self) -> None:
        """Nobody waits for what is being drawn any more."""
        self._passes.start([])

    def next(self) -> RenderRequest | None:
        """What is to be drawn next, if anything."""
        return self._passes.next()

    def draw(self, turn: RenderRequest) -> None:
        """Draws and shows one picture, unless it is out of date before it is done."""
        step, look = self._drawn, self._look()
        params = self._follower.found.scenes.get(step)
        if params is not None:
            wanted = functools.partial(self._passes.is_current, turn)
            picture = self._painter.draw(look, turn.size, params, step, wanted)
            if picture is None or not wanted():
                return
            self._picture = picture
            self._show(picture)
        self._passes.done(turn)

    def _step(self) -> int:
        """That of the scene to show; 0 if there is none."""
        steps = self._follower.found.scenes
        is_chosen = self._chosen in steps and not self._follow.value
        return self._chosen if is_chosen else max(steps, default=0)

    def _look(self) -> Look:
        color = tuple(channel / 255.0 for channel in self._color.value)
        return Look(self._mode.value, self._window, None if self._learned.value else color)

    def _look_again(self) -> None:
        self._refresh()
        self._start()

    def _start(self, moves: bool = True) -> None:
        """Asks for new pictures: if something moves, first for coarse ones."""
        self._drawn = self._step()
        sizes: list[Size] = []
        if self._drawn and self._mode.value != MESH:
            window, pixels = self._window, self._painter.moving_pixels(self._mode.value)
            sizes = pass_sizes((window.height, window.width), int(self._sharpest.value), pixels)
        self._passes.start(sizes if moves else sizes[-1:])
        self._wake()

    def _refresh(self) -> None:
        """Brings controls, words and mesh up to the work folder and to what was chosen."""
        with self._lock, self._client.atomic():
            found, step = self._follower.found, self._step()
            steps = list(found.scenes)
            self._slider.max = max(len(steps), 1)
            if step:
                self._slider.value = steps.index(step) + 1
            self._story.content = self._words(step)
            self._refresh_mesh(found.mesh)

    def _refresh_mesh(self, data: bytes | None) -> None:
        if self._mesh and self._mesh[0] is not data:
            self._mesh[1].remove()
            self._mesh = None
        is_wanted = self._mode.value == MESH
        if is_wanted and data and not self._mesh:
            turned = transforms.SO3.from_matrix(WORLD_TO_GLTF.T).wxyz
            scene = self._client.scene
            self._mesh = data, scene.add_glb("/mesh", data, wxyz=turned, receive_shadow=False)
        if self._mesh:
            self._mesh[1].visible = is_wanted
        if is_wanted:
            self._show(np.full((2, 2, 3), self._color.value, np.uint8))

    def _show(self, picture: np.ndarray) -> None:
        is_small = picture.size <= 3 * _LOSSLESS_PIXELS
        self._client.scene.set_background_image(
            picture, "png" if is_small else "jpeg", jpeg_quality=_JPEG_QUALITY
        )

    def _words(self, step: int) -> str:
        found, config = self._follower.found, self._follower.config
        words = [f"**{_plain(config.train.prompt)}**", _plain(found.progress)]
        if step:
            words.append(f"Shown: step {step:,}.")
        else:
            every = min(config.run.checkpoint_every, config.train.steps)
            words.append(f"Waiting for the first checkpoint, which comes after step {every:,}.")
        if self._mode.value == MESH:
            words.append(
                "The mesh is mesh\\.glb, as it was exported last."
                if found.mesh
                else "There is no mesh\\.glb yet. The run makes it at its end;"
                " `python -m dreamfusion_jax.export` makes it now."
            )
        return "\n\n".join(filter(None, [*words, _plain(found.trouble)]))

    def _send_picture(self) -> None:
        """Hands the present picture to the browser as a file."""
        mode, picture = self._mode.value, self._picture
        if mode == MESH:
            height, width = self._window.height, self._window.width
            try:
                picture = self._client.get_render(
                    height, width, transport_format="png", timeout=_ASKING_S
                )
            except (TimeoutError, RuntimeError):
                return  # the browser is busy, or gone
        if picture is not None:
            name = f"{slug(self._follower.config.train.prompt)}-{self._drawn}-{mode}.png"
            png = encode_png(picture)
            self._client.send_file_download(name, png, save_immediately=True)


def _window(camera: viser.CameraHandle) -> Window:
    wxyz, position = (tuple(map(float, x)) for x in (camera.wxyz, camera.position))
    # A browser's window may be hidden, and then have no size.
    height, width = max(camera.image_height, 1), max(camera.image_width, 1)
    return Window(wxyz, position, float(camera.fov), height, width)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
