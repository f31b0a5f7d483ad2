"""Several processes, one per host, as one job, by JAX's distributed runtime.

Every process runs the same program on its own devices. Process 0 alone writes images, metrics and
the mesh, and makes the decisions that must be the same everywhere.
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
from dreamfusion_jax.runtime.errors import (
    ArgumentError,
    NumberFormatError,
    PriorError,
    RunError,
    SettingError,
    UserError,
)
from dreamfusion_jax.runtime.files import AnyPath

Value = TypeVar("Value")

_MESSAGE_BYTES = 2**16
_LOOPBACK = ("localhost", "127.", "[::1]")
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def start(config: RunOptions) -> None:
    """Joins the other processes, if there are any. Call it before any other use of JAX.

    Raises:
      RunError: they cannot be joined.
    """
    if not _is_distributed(config):
        return
    options: dict[str, Any] = {}
    if config.coordinator:
        options = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process_index,
        }
        if config.coordinator.startswith(_LOOPBACK):  # Else it would listen on all networks.
            options["coordinator_bind_address"] = config.coordinator
    # The loop handles SIGTERM itself.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    _fork_watchdog()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=config.peer_timeout,
            shutdown_timeout_seconds=config.peer_timeout,
            initialization_timeout=3 * config.peer_timeout,
            **options,
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
    """Returns whether TPU chips and their driver are present."""
    chips = any(path for pattern in _TPU_DEVICES for path in Path("/").glob(pattern[1:]))
    return chips and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
    """Returns whether this is process 0, which alone writes and prints."""
    return jax.process_index() == 0


def print_primary(text: str, file: TextIO | None = None) -> None:
    """Prints in process 0 alone."""
    if is_primary():
        print(text, file=file or sys.stdout, flush=True)


def is_single_process() -> bool:
    """Returns whether there are no other processes."""
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


_ERRORS = {
    kind.__name__: kind
    for kind in (UserError, ArgumentError, SettingError, RunError, PriorError, NumberFormatError)
}


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


def all_agree(value: bool) -> bool:
    """Returns whether `value` is true in every process. Every process must call it."""
    return (
        value
        if is_single_process()
        else bool(np.all(multihost_utils.process_allgather(np.array(value))))
    )


def require_shared(folder: AnyPath) -> None:
    """Checks that all processes see the same folder, as all of them write checkpoints there.

    Raises:
      UserError: they do not; in every process.
    """
    if is_single_process() or not isinstance(folder, Path):
        return
    marker = folder / run_on_primary(lambda: _write_marker(folder))
    is_shared = all_agree(marker.exists())
    if is_primary():
        marker.unlink()
    if not is_shared:
        raise UserError(
            f"--workdir={folder} is not one folder for all processes of this job; name a bucket"
            " (gs://...) or a folder on a shared disk."
        )


def _write_marker(folder: Path) -> str:
    marker = f".shared-{uuid.uuid4().hex}"
    (folder / marker).touch()
    return marker


def _broadcast(message: Any) -> Any:
    """Returns process 0's message in every process."""
    data = np.zeros(_MESSAGE_BYTES, np.uint8)
    text = json.dumps(message).encode()
    data[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(data)).rstrip(b"\0"))


@contextmanager
def abort_on_peer_failure() -> Iterator[None]:
    """Exits at once, with one sentence, where communication with another process fails.

    The processes cannot continue without each other, and even an orderly end would wait for the
    dead one.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_single_process() or _is_of_this_process(error):
            raise
        print(f"\nError: {_LOST} ({_first_line(error)})", file=sys.stderr, flush=True)
        for act in _before_abort:
            act()
        _report_clean_exit()
        os._exit(RunError.exit_code)


@contextmanager
def before_abort(act: Callable[[], None]) -> Iterator[None]:
    """Within a `with`, has `act` called before the process exits at once for another's failure."""
    _before_abort.append(act)
    try:
        yield
    finally:
        _before_abort.remove(act)


_LOST = (
    "Another process of this job has died or cannot be reached; start all of them again: the run"
    " continues from its last checkpoint."
)
_before_abort: list[Callable[[], None]] = []
_exit_pipe: list[int] = []  # to the watchdog of this process


def _fork_watchdog() -> None:
    """Forks a watchdog that reports an unclean exit of this process.

    Where another process is silent for `--peer_timeout`, JAX aborts this one from C++: no Python
    code runs any more, and JAX prints only a stack trace.
    """
    faulthandler.disable()  # The stacks of the threads do not help a user.
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # JAX warns of forks, but none of its threads runs yet, and the watchdog never calls it.
        warnings.simplefilter("ignore")
        is_watchdog = os.fork() == 0
    if not is_watchdog:
        os.close(read_end)
        _exit_pipe.append(write_end)
        atexit.register(_report_clean_exit)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(write_end)
    if not os.read(read_end, 1):
        os.write(2, f"\nError: {_LOST} (Or the system killed this one.)\n".encode())
    os._exit(0)


def _report_clean_exit() -> None:
    if _exit_pipe:
        os.write(_exit_pipe.pop(), b".")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)


def _is_of_this_process(error: jax.errors.JaxRuntimeError) -> bool:
    return str(error).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
