"""A run's scene in the browser, to turn and to watch while it grows.

python -m dreamfusion_jax.view --workdir=workdir/a-red-chair
"""

from __future__ import annotations

import os
import signal
import time

import jax
from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs import lock
from dreamfusion_jax.runs.workdir import check_places
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path
from dreamfusion_jax.viewer.renderer import Renderer
from dreamfusion_jax.viewer.workdir_watcher import WorkdirWatcher

_POLL_S = 0.5


def main() -> int:
    # A run that is followed may have most of the same accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        view(flags.FLAGS.workdir, flags.FLAGS.port)
    except KeyboardInterrupt:
        print("\nThe viewer is closed.")
    return 0


def view(workdir_name: str, port: int) -> None:
    """Shows a run until it is interrupted.

    Raises:
      UserError: there is nothing to show, or nothing to show it with.
    """
    try:
        from dreamfusion_jax.viewer.server import HOST, Server
    except ModuleNotFoundError as error:
        raise UserError(
            f"The viewer needs a package that is not installed ({error.name}): pip install viser."
        ) from error
    workdir = as_path(workdir_name)
    check_places(workdir)
    cli.use_compilation_cache("auto")
    cli.use_platform(flags.FLAGS.platform)
    _await_config(workdir)
    follower = WorkdirWatcher(workdir)
    print("Compiling the renderer ...", flush=True)
    painter = Renderer(follower.scene)
    painter.compile(follower.init_params)
    follower.refresh()
    server = Server(follower, painter, images.training_orbit(follower.config.camera), port)
    try:
        if server.port != port:
            print(f"Port {port} is taken.")
        print(
            f"{follower.config.train.prompt!r} is at http://{HOST}:{server.port} (Ctrl-C ends it).",
            flush=True,
        )
        server.run()
    except jax.errors.JaxRuntimeError as error:
        raise RunError(
            f"The scene cannot be drawn ({str(error):.200}); if a run has the device's memory,"
            " look on the CPU: --platform=cpu."
        ) from error
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ending takes no second one
        server.close()
        follower.close()


def _await_config(workdir: AnyPath) -> None:
    """Waits for a run that has just begun: it reads its prior before it writes its settings.

    Raises:
      RunError: it ended before that.
    """
    config = workdir / "config.json"
    if config.exists() or not (workdir / lock.LOCK).exists():
        return
    print(f"Waiting for the run in {workdir} to begin ...", flush=True)
    while not config.exists():
        if not lock.is_held(workdir) and not config.exists():
            raise RunError(
                f"The run in {workdir} ended before it wrote config.json, and left nothing to show:"
                " start it again, or name another --workdir."
            )
        time.sleep(_POLL_S)


def define_flags() -> None:
    """The work folder, what draws, and where the page is."""
    configs.define_flags(("workdir", "platform"))
    # Viser tries a thousand ports from this one on.
    flags.DEFINE_integer(
        "port",
        8080,
        "where the page is, on this machine alone; the next free one where that is taken",
        lower_bound=1024,
        upper_bound=2**16 - 1000,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
