"""One job at a time in a work folder; a job that died, however, locks nobody out.

On a file system of this machine's the operating system holds the lock, and lets go of it with the
process. A bucket has no locks: there the job writes a new word into a file every few seconds, and
another job watches that word before it believes it alive. No clocks are compared.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath

LOCK = ".lock"
BEAT_SECONDS = 15.0  # between two words of a job in a bucket
SILENT_SECONDS = 60.0  # without a new word, after which it counts as dead


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


@contextmanager
def _held_by_the_system(workdir: Path) -> Iterator[None]:
    with (workdir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _taken(workdir, file.read(200)) from None
        except OSError:
            pass  # A file system without locks.
        file.truncate(0)
        file.write(f"{_owner()}\n")
        file.flush()
        yield


@contextmanager
def held_by_heartbeat(
    workdir: AnyPath, beat: float = BEAT_SECONDS, silent: float = SILENT_SECONDS
) -> Iterator[None]:
    """The lock where the file system has none.

    Args:
      beat: seconds between two signs of life.
      silent: seconds without one after which another job is dead; as long does a new job wait that
        finds its lock.
    """
    path, mine = workdir / LOCK, f"{_owner()}, {uuid.uuid4().hex}"
    word = _read(path)
    if word is not None:
        print(f"{path} is there: waiting {silent:.0f} s for a sign of life.", file=sys.stderr)
        if _changes(path, word, silent):
            raise _taken(workdir, word)
    path.write_text(f"{mine}\n0\n")
    time.sleep(min(beat, 2.0))  # Of two that came at once the later one's word stays.
    word = _read(path) or ""
    if not word.startswith(mine):
        raise _taken(workdir, word)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, mine, beat, done), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        path.unlink(missing_ok=True)


def _beat(path: AnyPath, mine: str, beat: float, done: threading.Event) -> None:
    count = 0
    while not done.wait(beat):
        count += 1
        try:
            path.write_text(f"{mine}\n{count}\n")
        except Exception as error:  # The network may be away for a while.
            print(f"Warning: {path} cannot be renewed ({error}).", file=sys.stderr)


def _changes(path: AnyPath, word: str, seconds: float) -> bool:
    """Whether the file says something new before the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds / 10))
        now = _read(path)
        if now != word:
            return now is not None  # Where it is gone that job is done.
    return False


def _read(path: AnyPath) -> str | None:
    try:
        return path.read_text()[:300]
    except FileNotFoundError:
        return None


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _taken(workdir: AnyPath, word: str) -> UserError:
    owner = word.splitlines()[0].split(",")[0] if word.strip() else "unknown"
    return UserError(
        f"Another job ({owner}) is at work in {workdir}; wait until it is done, or name another"
        " --workdir."
    )
