"""Several processes, one a host, as one program: JAX's own distributed runtime.

Every process runs the same commands on its own devices. The first one (index 0) alone writes
pictures, metrics and the mesh, and decides what only one can decide; the others hear of it here.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib.util
import json
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runtime.errors import PriorError, RunError, SettingError, UserError
from dreamfusion_jax.runtime.files import AnyPath

Value = TypeVar("Value")

_MESSAGE_BYTES = 2**16
_LOOPBACK = ("localhost", "127.", "[::1]")
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def start(config: RunOptions) -> None:
    """Joins the other processes, if there are any. Must come before all other use of JAX.

    Raises:
      UserError: they cannot be found, or do not come.
    """
    if not _is_distributed(config):
        return
    given: dict[str, Any] = {}
    if config.coordinator:
        given = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process_index,
        }
        if config.coordinator.startswith(_LOOPBACK):  # or it would listen to the whole network
            given["coordinator_bind_address"] = config.coordinator
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)  # The loop hears SIGTERM itself.
    _fork_watchdog()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=config.peer_timeout,
            shutdown_timeout_seconds=config.peer_timeout,
            initialization_timeout=3 * config.peer_timeout,
            **given,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(
            f"The other processes of this job cannot be joined ({_first_line(error)}): check"
            " --coordinator, --processes and --process_index, or give --distributed=off to run on"
            " this host alone."
        ) from error


def _is_distributed(config: RunOptions) -> bool:
    if config.distributed == "auto":
        return bool(config.coordinator) or _on_cloud_tpu()
    return config.distributed == "on"


def _on_cloud_tpu() -> bool:
    """Whether TPU chips, and what drives them, are here."""
    chips = any(path for pattern in _TPU_DEVICES for path in Path("/").glob(pattern[1:]))
    return chips and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
    """Whether this process is the one that writes, and talks to the user."""
    return jax.process_index() == 0


def print_primary(text: str, file: TextIO | None = None) -> None:
    """Prints it once, not once a process."""
    if is_primary():
        print(text, file=file or sys.stdout, flush=True)


def is_single_process() -> bool:
    """Whether there are no other processes."""
    return jax.process_count() == 1


def run_on_primary(make: Callable[[], Value]) -> Value:
    """Runs `make` on process 0 and broadcasts the result, or the error.

    Args:
      make: returns what JSON can hold.

    Raises:
      UserError: `make` raised it: in every process of the same class and with its cause; the other
        processes know the cause by its description alone.
      RunError: in the other processes, where `make` raised anything else.
    """
    if is_single_process():
        return make()
    outcome: dict[str, Any] = {}
    if is_primary():
        try:
            outcome = {"value": make()}
        except BaseException as error:
            _broadcast(_describe(error))
            raise
    outcome = _broadcast(outcome)
    if "error" in outcome:
        cause = _PrimaryError(outcome["cause"]) if outcome["cause"] else None
        raise _ERRORS[outcome["class"]](outcome["error"]) from cause
    return outcome["value"]


_ERRORS = {kind.__name__: kind for kind in (UserError, SettingError, RunError, PriorError)}


class _PrimaryError(Exception):
    """What went wrong in process 0."""


def _describe(error: BaseException) -> dict[str, str]:
    """Returns an error's class, message and cause as JSON holds them."""
    cause = f"{error.__cause__!r:.1000}" if error.__cause__ else ""
    if isinstance(error, UserError):
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
        return {"class": kind, "error": str(error)[:4000], "cause": cause}
    message = f"The first process failed: {error!r}"[:4000]
    return {"class": RunError.__name__, "error": message, "cause": cause}


def all_agree(here: bool) -> bool:
    """Whether it is so in every process."""
    return (
        here
        if is_single_process()
        else bool(np.all(multihost_utils.process_allgather(np.array(here))))
    )


def require_shared(folder: AnyPath) -> None:
    """Refuses a folder that not all processes see, as all of them write checkpoints there.

    Raises:
      UserError: in every process.
    """
    if is_single_process() or not isinstance(folder, Path):
        return
    mark = folder / run_on_primary(lambda: _leave_mark(folder))
    seen = all_agree(mark.exists())
    if is_primary():
        mark.unlink()
    if not seen:
        raise UserError(
            f"--workdir={folder} is not one folder for all processes of this job; name a bucket"
            " (gs://...) or a folder on a shared disk."
        )


def _leave_mark(folder: Path) -> str:
    mark = f".shared-{uuid.uuid4().hex}"
    (folder / mark).touch()
    return mark


def _broadcast(message: Any) -> Any:
    """The first process's message, in every process."""
    data = np.zeros(_MESSAGE_BYTES, np.uint8)
    text = json.dumps(message).encode()
    data[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(data)).rstrip(b"\0"))


@contextmanager
def abort_on_peer_failure() -> Iterator[None]:
    """Ends this process at once, with one sentence, where an exchange with another one fails.

    The others cannot go on without it, and would wait for it even in order to end.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_single_process() or _is_of_this_process(error):
            raise
        print(f"\nError: {_LOST} ({_first_line(error)})", file=sys.stderr, flush=True)
        _report_clean_exit()
        os._exit(RunError.exit_code)


_LOST = (
    "Another process of this job has died or cannot be reached; start all of them again: the run"
    " goes on from its last checkpoint."
)
_goodbye: list[int] = []  # the pipe to whoever watches over this process


def _fork_watchdog() -> None:
    """Has another process say what became of this one, should it end without a word.

    Where another process is silent for `--peer_timeout`, JAX aborts this one from within: no code
    of ours runs any more, and what JAX prints is a page of addresses.
    """
    faulthandler.disable()  # Where each thread was tells a user nothing.
    heard, said = os.pipe()
    with warnings.catch_warnings():
        # JAX warns of forks; but none of its threads runs yet, and the copy never calls it.
        warnings.simplefilter("ignore")
        watcher = os.fork() == 0
    if not watcher:
        os.close(heard)
        _goodbye.append(said)
        atexit.register(_report_clean_exit)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(said)
    if not os.read(heard, 1):
        os.write(2, f"\nError: {_LOST} (Or the system killed this one.)\n".encode())
    os._exit(0)


def _report_clean_exit() -> None:
    if _goodbye:
        os.write(_goodbye.pop(), b".")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)


def _is_of_this_process(error: jax.errors.JaxRuntimeError) -> bool:
    return str(error).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
