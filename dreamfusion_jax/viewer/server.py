"""The viewer's web server, on this machine alone, and the loop that draws for all its tabs."""

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
    """Viser's server without its tunnel to the internet, whatever a page asks for."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


class Server:
    """Shows what a work folder holds to every browser that asks.

    Args:
      port: or, where it is taken, the next free one; `port` tells.
    """

    def __init__(
        self, follower: WorkdirWatcher, painter: Renderer, orbit: images.Orbit, port: int
    ) -> None:
        self._follower, self._painter, self._orbit = follower, painter, orbit
        self._tabs: dict[int, Tab] = {}
        self._something_to_do, self._ends = threading.Event(), threading.Event()
        # A tab may be closed while a picture is on its way to it.
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")
        with contextlib.redirect_stdout(io.StringIO()):  # viser draws a table
            self._server = _LocalServer(HOST, port, label="dreamfusion_jax", verbose=False)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._add_lights()
        first = orbit.camera(images.POSTER_AZIMUTH_DEG)
        self._server.initial_camera.position = tuple(map(float, first.pose[:, 3]))
        self._server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._server.on_client_connect(self._add_tab)
        self._server.on_client_disconnect(self._remove_tab)
        self._looking = threading.Thread(target=self._look, daemon=True)

    @property
    def port(self) -> int:
        return self._server.get_port()

    def run(self) -> None:
        """Draws until it is interrupted."""
        self._looking.start()
        while True:
            due = [(turn.stage, tab, turn) for tab in self._open() if (turn := tab.next())]
            if due:
                # The coarsest first, so that nobody's camera waits for another's sharp picture.
                _, tab, turn = min(due, key=lambda item: item[0])
                tab.draw(turn)
            else:
                self._something_to_do.wait()
                self._something_to_do.clear()

    def _add_lights(self) -> None:
        """For the mesh: half of its albedo everywhere, and all of it where it faces the sun.

        Viser's own environment would tint it, and is slow where WebGL has no graphics card.
        """
        scene, half = self._server.scene, 0.5 * math.pi  # of what WebGL calls the irradiance
        scene.configure_default_lights(False)
        scene.configure_environment_map(None)
        scene.add_light_ambient("/ambient", intensity=half)
        scene.add_light_directional("/sun", intensity=half, position=(8.0, 3.0, 8.0))

    def close(self) -> None:
        self._ends.set()
        with contextlib.redirect_stdout(io.StringIO()):  # viser says goodbye
            self._server.stop()
        # Python's end would stop a thread that reads a checkpoint wherever it is, locks and all.
        if self._looking.is_alive():
            self._looking.join(_PATIENCE_S)

    def _open(self) -> list[Tab]:
        return list(self._tabs.values())

    def _add_tab(self, client: viser.ClientHandle) -> None:
        wake = self._something_to_do.set
        tab = Tab(client, self._follower, self._painter, self._orbit, wake)
        self._tabs[client.client_id] = tab
        if client.client_id not in self._server.get_clients():  # closed while it was made
            self._remove_tab(client)

    def _remove_tab(self, client: viser.ClientHandle) -> None:
        if tab := self._tabs.pop(client.client_id, None):
            tab.close()

    def _look(self) -> None:
        """Looks into the work folder, again and again."""
        while not self._ends.wait(_POLL_S):
            self._follower.refresh(self._renew)

    def _renew(self) -> None:
        for tab in self._open():
            tab.renew()
