"""Allows one job at a time in a work folder; a job that died locks nobody out.

On a local file system the operating system holds the lock, and releases it when the process ends:
by flock on the file that names the holder or, on Windows, where a locked file cannot be read, by
filelock on another file beside it.
A bucket has no locks: there the job rewrites a file every few seconds, and another job watches
that file for changes before it takes the first one for alive. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TextIO

import filelock

from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath

try:
    import fcntl
except ImportError:  # on Windows
    flocks: ModuleType | None = None
else:
    flocks = fcntl

LOCK = ".lock"
SYSTEM_LOCK = ".lock.system"  # of filelock
BEAT_SECONDS = 15.0  # between two heartbeats of a job in a bucket
SILENT_SECONDS = 60.0  # without a heartbeat, after which a job counts as dead
_OWNER = re.compile(r"process (\d+) on (.+)\n")


@contextmanager
def locked(workdir: AnyPath) -> Iterator[None]:
    """Keeps other jobs out of the folder.

    Raises:
      UserError: another job is at work there.
    """
    if isinstance(workdir, Path):
        with _held_by_the_system(workdir):
            yield
    else:
        with held_by_heartbeat(workdir):
            yield


def is_held(workdir: AnyPath, silent: float = SILENT_SECONDS) -> bool:
    """Returns whether a job is at work in the folder, without touching its lock.

    A job on another host that shares the disk counts as at work. In a bucket this waits for the
    next heartbeat, for `silent` seconds at most.
    """
    text = _read(workdir / LOCK)
    if text is None:
        return False
    if not isinstance(workdir, Path):
        return _changes(workdir / LOCK, text, silent)
    if flocks is None:
        return not _is_free(workdir / SYSTEM_LOCK)
    owner = _OWNER.fullmatch(text)
    return not owner or owner[2] != socket.gethostname() or _is_running(int(owner[1]))


def local_owner(workdir: Path) -> int | None:
    """Returns the number of this machine's process that is at work in the folder, if any."""
    owner = _OWNER.fullmatch(_read(workdir / LOCK) or "")
    if not owner or owner[2] != socket.gethostname() or not _is_running(int(owner[1])):
        return None
    return int(owner[1])


def _is_free(path: Path) -> bool:
    try:
        with filelock.FileLock(path, blocking=False):
            return True
    except filelock.Timeout:
        return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # Sends nothing.
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _held_by_the_system(workdir: Path) -> Iterator[None]:
    if flocks is None:
        with _held_by_filelock(workdir):
            yield
        return
    path = workdir / LOCK
    with _open_locked(path) as file:
        file.truncate(0)
        file.write(f"{_owner()}\n")
        file.flush()
        try:
            yield
        finally:
            # Before the lock is released, so that the file removed is this job's own.
            if _is_at(file, path):
                with contextlib.suppress(OSError):
                    path.unlink()


@contextmanager
def _held_by_filelock(workdir: Path) -> Iterator[None]:
    path, system = workdir / LOCK, filelock.FileLock(workdir / SYSTEM_LOCK, blocking=False)
    try:
        system.acquire()
    except filelock.Timeout:
        raise _taken(workdir, _read(path) or "") from None
    with system:
        path.write_text(f"{_owner()}\n")
        try:
            yield
        finally:
            system.release()
            with contextlib.suppress(OSError):
                path.unlink()


def _open_locked(path: Path) -> TextIO:
    assert flocks is not None
    while True:
        file = path.open("a+")
        try:
            flocks.flock(file, flocks.LOCK_EX | flocks.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise _taken(path.parent, file.read(200)) from None
        except OSError:
            pass  # A file system without locks.
        if _is_at(file, path):
            return file
        file.close()  # Another job removed it after it was opened here: a lock on it excludes none.


def _is_at(file: TextIO, path: Path) -> bool:
    """Returns whether an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def held_by_heartbeat(
    workdir: AnyPath, beat: float = BEAT_SECONDS, silent: float = SILENT_SECONDS
) -> Iterator[None]:
    """Holds a lock where the file system has none.

    Args:
      beat: seconds between two heartbeats.
      silent: seconds without a heartbeat after which another job counts as dead; a new job that
        finds a lock waits that long.

    Raises:
      UserError: another job is at work there.
    """
    path, owner = workdir / LOCK, f"{_owner()}, {uuid.uuid4().hex}"
    text = _read(path)
    if text is not None:
        print(f"{path} exists: waiting {silent:.0f} s for a sign of life.", file=sys.stderr)
        if _changes(path, text, silent):
            raise _taken(workdir, text)
    path.write_text(f"{owner}\n0\n")
    time.sleep(min(beat, 2.0))  # Of two jobs that start at once, the last to write stays.
    text = _read(path) or ""
    if not text.startswith(owner):
        raise _taken(workdir, text)
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, owner, beat, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


def _beat(path: AnyPath, owner: str, beat: float, done: threading.Event) -> None:
    count = 0
    while not done.wait(beat):
        count += 1
        try:
            path.write_text(f"{owner}\n{count}\n")
        except Exception as error:  # The network may be away for a while.
            print(f"Warning: {path} cannot be renewed ({error}).", file=sys.stderr)


def _changes(path: AnyPath, text: str, seconds: float) -> bool:
    """Returns whether the file's text changes in that time; a removed file counts as unchanged."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds / 10))
        now = _read(path)
        if now != text:
            return now is not None  # The job that removed it is done.
    return False


def _read(path: AnyPath) -> str | None:
    try:
        return path.read_text()[:300]
    except FileNotFoundError:
        return None


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _taken(workdir: AnyPath, text: str) -> UserError:
    owner = text.splitlines()[0].split(",")[0] if text.strip() else "unknown"
    return UserError(
        f"Another job ({owner}) is at work in {workdir}; wait until it is done, or name another"
        " --workdir."
    )
