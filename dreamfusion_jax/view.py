"""Shows a run's scene in the browser, where it can be orbited, also while the run goes on.

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
    """Shows the run until Ctrl-C; returns the exit code."""
    # The run may hold most of the same accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        view(flags.FLAGS.workdir, flags.FLAGS.port)
    except KeyboardInterrupt:
        print("\nThe viewer is closed.")
    return 0


def view(workdir_name: str, port: int) -> None:
    """Shows a run until it is interrupted.

    Raises:
      UserError: there is nothing to show, or viser is not installed.
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
    watcher = WorkdirWatcher(workdir)
    print("Compiling the renderer ...", flush=True)
    renderer = Renderer(watcher.scene)
    renderer.compile(watcher.init_params)
    watcher.refresh()
    server = Server(watcher, renderer, images.training_orbit(watcher.config.camera), port)
    try:
        if server.port != port:
            print(f"Port {port} is taken.")
        print(
            f"{watcher.config.train.prompt!r} is at http://{HOST}:{server.port} (Ctrl-C ends it).",
            flush=True,
        )
        server.run()
    except jax.errors.JaxRuntimeError as error:
        raise RunError(
            f"The scene cannot be rendered ({str(error):.200}); if a run holds the device's memory,"
            " use the CPU: --platform=cpu."
        ) from error
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # already ending
        server.close()
        watcher.close()


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
    """Defines the flags of the work folder, the platform and the port."""
    configs.define_flags(("workdir", "platform"))
    # Viser tries a thousand ports from this one on.
    flags.DEFINE_integer(
        "port",
        8080,
        "port of the page, which only this machine can open; if taken, the next free one",
        lower_bound=1024,
        upper_bound=2**16 - 1000,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
