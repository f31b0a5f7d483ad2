"""Opens the studio in the browser: type a prompt, watch the asset grow, take it away.

python -m dreamfusion_jax.studio --root=workdir
"""

from __future__ import annotations

import ipaddress
import os
import threading
from pathlib import Path

from absl import flags

from dreamfusion_jax.config import cli
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import local_path

_LOOPBACK = "127.0.0.1"
_PASSWORD = "STUDIO_PASSWORD"


def main() -> int:
    """Serves the studio until Ctrl-C; returns the exit code."""
    values = flags.FLAGS
    password = values.password or os.environ.get(_PASSWORD, "")
    require_password(values.host, password)
    root = make_root(values.root)
    try:
        from dreamfusion_jax.webui import app, jobs
    except ModuleNotFoundError as error:
        raise UserError(
            f"The studio needs a package that is not installed ({error.name}): pip install gradio."
        ) from error
    queue = jobs.Queue(root)
    studio = app.Studio(root, queue)
    try:
        with app.serving(studio, values.host, values.port, password) as address:
            queue.start()
            print(f"The studio is at {address} (Ctrl-C ends it).", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("\nThe studio is closed.", flush=True)
    finally:
        queue.close()
    return 0


def require_password(host: str, password: str) -> None:
    """Raises a UserError where others than this machine could come in without a password."""
    if not password and not is_loopback(host):
        raise UserError(
            f"--host={host} lets other machines in: give a --password, too, or leave --host out."
        )


def is_loopback(host: str) -> bool:
    """Returns whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_root(name: str) -> Path:
    """Creates the folder of all assets. Raises a UserError where that is not possible."""
    root = local_path(name, "root")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--root={root} cannot be made ({error.strerror}).") from error
    return root


def define_flags() -> None:
    """Defines the flags of the folder and the server."""
    flags.DEFINE_string("root", "workdir", "folder of all assets, each in a folder of its own")
    flags.DEFINE_string(
        "host", _LOOPBACK, "address to listen on; any but this machine's needs a --password"
    )
    flags.DEFINE_string(
        "password",
        "",
        f"password of the user 'studio' (empty: that of the environment variable {_PASSWORD}, if"
        " any; other users of this machine can read flags, but not variables)",
    )
    flags.DEFINE_integer("port", 7860, "port of the page", lower_bound=1024, upper_bound=2**16 - 1)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
