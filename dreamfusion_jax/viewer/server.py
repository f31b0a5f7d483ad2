"""The viewer's web server, which only this machine can reach, and its render loop."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings

import viser

from dreamfusion_jax.rendering import images
from dreamfusion_jax.viewer.client import Tab
from dreamfusion_jax.viewer.renderer import Renderer
from dreamfusion_jax.viewer.workdir_watcher import WorkdirWatcher

HOST = "127.0.0.1"
_POLL_S = 1.0
_PATIENCE_S = 10.0


class _LocalServer(viser.ViserServer):
    """Viser's server without its tunnel to the internet."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


class Server:
    """Shows the scene of a work folder in every connected browser.

    Args:
      watcher: watches the work folder.
      renderer: renders its scene.
      orbit: the first camera.
      port: the port of the page; where it is taken, the next free one, as the property says.
    """

    def __init__(
        self, watcher: WorkdirWatcher, renderer: Renderer, orbit: images.Orbit, port: int
    ) -> None:
        self._watcher, self._renderer, self._orbit = watcher, renderer, orbit
        self._tabs: dict[int, Tab] = {}
        self._wake, self._ends = threading.Event(), threading.Event()
        # A tab may be closed while an image is sent to it.
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints a table
            self._server = _LocalServer(HOST, port, label="dreamfusion_jax", verbose=False)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._add_lights()
        first = orbit.camera(images.POSTER_AZIMUTH_DEG)
        self._server.initial_camera.position = tuple(map(float, first.pose[:, 3]))
        self._server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._server.on_client_connect(self._add_tab)
        self._server.on_client_disconnect(self._remove_tab)
        self._watching = threading.Thread(target=self._watch, daemon=True)

    @property
    def port(self) -> int:
        """The port that the page has."""
        return self._server.get_port()

    def run(self) -> None:
        """Renders until it is interrupted."""
        self._watching.start()
        while True:
            due = [(r.stage, tab, r) for tab in self._open_tabs() if (r := tab.next())]
            if due:
                # The coarsest first, so that no camera waits for the sharp image of another tab.
                _, tab, request = min(due, key=lambda item: item[0])
                tab.draw(request)
            else:
                self._wake.wait()
                self._wake.clear()

    def _add_lights(self) -> None:
        """Lights the mesh: half of its albedo everywhere, and all of it where it faces the sun.

        Viser's own environment would tint it, and is slow where WebGL has no GPU.
        """
        scene, half = self._server.scene, 0.5 * math.pi  # in the units of WebGL's irradiance
        scene.configure_default_lights(False)
        scene.configure_environment_map(None)
        scene.add_light_ambient("/ambient", intensity=half)
        scene.add_light_directional("/sun", intensity=half, position=(8.0, 3.0, 8.0))

    def close(self) -> None:
        """Stops the server and the watching thread."""
        self._ends.set()
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints a farewell
            self._server.stop()
        # At exit Python would stop a thread in the middle of reading a checkpoint, with locks held.
        if self._watching.is_alive():
            self._watching.join(_PATIENCE_S)

    def _open_tabs(self) -> list[Tab]:
        return list(self._tabs.values())

    def _add_tab(self, client: viser.ClientHandle) -> None:
        wake = self._wake.set
        tab = Tab(client, self._watcher, self._renderer, self._orbit, wake)
        self._tabs[client.client_id] = tab
        if client.client_id not in self._server.get_clients():  # closed meanwhile
            self._remove_tab(client)

    def _remove_tab(self, client: viser.ClientHandle) -> None:
        if tab := self._tabs.pop(client.client_id, None):
            tab.close()

    def _watch(self) -> None:
        """Reads the work folder again and again."""
        while not self._ends.wait(_POLL_S):
            self._watcher.refresh(self._renew)

    def _renew(self) -> None:
        for tab in self._open_tabs():
            tab.renew()
