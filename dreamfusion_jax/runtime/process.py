"""How the process of a command begins and ends: standard streams, signals, an interruption.

Ctrl-C, SIGTERM and SIGHUP all ask a command to stop. While modules are imported nothing can be
lost, and the process leaves at once; later they raise KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

EXIT_INTERRUPTED = 130

_is_command = False  # whether this process is a command's own, and not a caller's of the Python API
_received: list[int] = []

_AGAIN_S = 0.05


def begin() -> None:
    """Prepares the process of a command. Call it before any slow import."""
    global _is_command
    _is_command = True
    fill_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _forgiving(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _forgiving(sys.stderr, 2)
    for number in stop_signals():
        signal.signal(number, _leave_at_once)


def started_as_module() -> bool:
    """Returns whether `python -m` is importing this package to run one of its modules."""
    # Until the module is found, `-m` stands where its path will be.
    package = __name__.split(".")[0]
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    return sys.argv[:1] == ["-m"] and module[:1] != [] and module[0].split(".")[0] == package


def stop_signals() -> list[int]:
    """Lists the signals that ask to stop: SIGHUP, too, unless it is ignored, as under nohup."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        numbers.append(hang_up)
    return numbers


def raise_on_signals() -> None:
    """Makes the signals raise KeyboardInterrupt from now on."""
    _received.clear()
    for number in stop_signals():
        signal.signal(number, _interrupt)
    if sys.unraisablehook is not _raise_again:
        sys.unraisablehook = _raise_again


def was_interrupted() -> bool:
    """Returns whether a signal raised KeyboardInterrupt, which libraries may turn into others."""
    return bool(_received)


def ignore_signals() -> None:
    """Ignores the signals from now on, as the process ends already."""
    if _is_command:
        for number in stop_signals():
            signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> int:
    """Ends the process of a command at once; returns the code in any other process.

    The interpreter's own end would wait for the program that XLA is compiling, and then crash.
    """
    if _is_command:
        _exit_now(code)
    return code


def _exit_now(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    os._exit(code)


def _leave_at_once(number: int, frame: Any) -> None:
    write_error(b"\nStopped before anything was done.\n")
    _exit_now(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: Any) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _raise_again(unraisable: Any) -> None:
    """Sends the signal again whose KeyboardInterrupt a callback of the garbage collector lost."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    # A little later, when that callback is over.
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    return again.start()


def write_error(text: bytes) -> None:
    """Writes to stderr from a signal's handler, which may have interrupted a print."""
    with contextlib.suppress(OSError):  # The terminal may be gone.
        os.write(2, text)


def fill_descriptors() -> None:
    """Opens the null device in place of standard streams that are closed, as under a service.

    Else the next file that is opened, such as a lock, would be stderr to every library.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Replaces standard streams that are None or closed by the null device within a `with`."""
    fill_descriptors()
    own = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as null:
        sys.stdout, sys.stderr = (null if not is_usable(stream) else stream for stream in own)
        mine = sys.stdout, sys.stderr
        try:
            yield
        finally:
            # What the caller has replaced meanwhile stays.
            sys.stdout = own[0] if sys.stdout is mine[0] else sys.stdout
            sys.stderr = own[1] if sys.stderr is mine[1] else sys.stderr


def is_usable(stream: Any) -> bool:
    """Returns whether a stream can be written to."""
    return stream is not None and not getattr(stream, "closed", False)


class _ForgivingFile(io.FileIO):
    """A descriptor whose reader or terminal may go away: what is written to it then is lost."""

    def write(self, data: Any) -> int:
        """Writes the data; returns the number of bytes."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _forgiving(stream: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    """Returns a text stream to a standard descriptor, which never raises an OSError."""
    raw = _ForgivingFile(descriptor, "w", closefd=False)
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # A prompt may contain characters that the terminal's encoding lacks.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )
