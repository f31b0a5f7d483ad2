"""The studio's queue: one run at a time, each the command in a process of its own.

A crash of a run, or the end of its memory, therefore leaves the studio standing. What waits is
kept on disk, and a run goes on when the studio is killed; the next studio finds both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.runs import lock
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import atomic_write, read_json

FOLDER = ".studio"
COMMAND = (sys.executable, "-m", "dreamfusion_jax.main")
_POLL_S = 0.3
_PATIENCE_S = 60.0  # for a run that saves before it ends
_TAIL_BYTES = 4096


class Waiting(NamedTuple):
    """A run that was asked for and has not begun."""

    name: str
    arguments: list[str]


class _Begun(NamedTuple):
    """The run that was begun last, as the next studio finds it."""

    name: str
    process: int


class Queue:
    """Runs what was asked for below `root`, one after another.

    Args:
      command: what starts a run; its flags are appended.
    """

    def __init__(self, root: Path, command: Sequence[str] = COMMAND) -> None:
        self._root, self._command = root, list(command)
        self._folder = root / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._guard = threading.RLock()
        self._waiting = self._load()
        self._found = self._load_begun()
        self._process: subprocess.Popen[bytes] | None = None
        self._current = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begins with what waits."""
        self._thread.start()

    def close(self) -> None:
        """Stops the run, which saves first; what waits is kept for the next studio."""
        self._closed.set()
        self._thread.join()
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    @property
    def current(self) -> str:
        """The folder's name of the run that a studio began and that is at work; empty: none."""
        with self._guard:
            return self._current or (self._found.name if self._is_found_at_work() else "")

    @property
    def waiting(self) -> list[str]:
        """The folders' names of the runs that wait, in their order."""
        with self._guard:
            return [entry.name for entry in self._waiting]

    @property
    def names(self) -> list[str]:
        """The folders' names that are spoken for, though the folders may not exist yet."""
        with self._guard:
            return [self.current, *self.waiting]

    def add(self, config: Config) -> str:
        """Appends a run; returns its folder's name.

        Raises:
          UserError: the folder is not below the root, or is at work or waiting already.
        """
        folder = Path(config.run.workdir)
        if folder.resolve().parent != self._root.resolve():
            raise UserError(f"--workdir={folder} is not a folder of {self._root}.")
        with self._guard:
            if folder.name == self.current or lock.is_held(folder):
                raise UserError(f"{folder} is at work already.")
            if folder.name in self.waiting:
                raise UserError(f"{folder} waits already.")
            self._waiting.append(Waiting(folder.name, reproduce.arguments(config)))
            self._save()
        return folder.name

    def stop(self, name: str) -> bool:
        """Asks a run to save and stop, or takes it from the queue; returns whether it was there."""
        with self._guard:
            if name in self.waiting:
                self._waiting = [entry for entry in self._waiting if entry.name != name]
                self._save()
                return True
            if name == self._current and self._process:
                self._process.send_signal(signal.SIGTERM)
                return True
            # The run of a studio that was killed may still be far from taking its folder's lock.
            if self._found.name == name and self._is_found_at_work():
                os.kill(self._found.process, signal.SIGTERM)
                return True
        process = lock.local_owner(self._root / name)  # a run of the command line
        if process is None or not _is_run(process):
            return False
        os.kill(process, signal.SIGTERM)
        return True

    def log_tail(self, name: str) -> list[str]:
        """Returns the last lines that a run printed."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                text = log.read().decode(errors="replace")
        except (OSError, ValueError):
            return []
        return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]

    def error_of(self, name: str) -> str:
        """Returns the sentence with which a run failed; empty where it did not."""
        errors = [line for line in self.log_tail(name) if line.startswith("Error: ")]
        return errors[-1].removeprefix("Error: ") if errors else ""

    def _work(self) -> None:
        while not self._closed.wait(_POLL_S):
            with self._guard:
                if self._process and self._process.poll() is None:
                    continue
                self._process, self._current = None, ""
                if self._waiting and not self._is_device_busy():
                    self._begin(self._waiting.pop(0))
                    self._save()

    def _begin(self, entry: Waiting) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self._log(entry.name).open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, *entry.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # so that the studio's Ctrl-C is not the run's
            )
        self._current = entry.name
        begun = _Begun(entry.name, self._process.pid)
        atomic_write(self._begun_file, json.dumps(begun).encode())

    def _is_device_busy(self) -> bool:
        """Returns whether a run that this studio did not start is at work below the root."""
        return self._is_found_at_work() or any(
            lock.is_held(path.parent) for path in self._root.glob(f"*/{lock.LOCK}")
        )

    def _is_found_at_work(self) -> bool:
        """Returns whether the run of a studio that was killed goes on."""
        return bool(self._found.process) and _is_run(self._found.process)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _load(self) -> list[Waiting]:
        try:
            return [Waiting(str(n), list(map(str, a))) for n, a in read_json(self._queue_file)]
        except (OSError, ValueError, TypeError):
            return []

    def _load_begun(self) -> _Begun:
        try:
            name, process = read_json(self._begun_file)
            return _Begun(str(name), int(process))
        except (OSError, ValueError, TypeError):
            return _Begun("", 0)

    def _save(self) -> None:
        atomic_write(self._queue_file, json.dumps(self._waiting).encode())

    @property
    def _queue_file(self) -> Path:
        return self._folder / "queue.json"

    @property
    def _begun_file(self) -> Path:
        return self._folder / "begun.json"


def _is_run(process: int) -> bool:
    """Returns whether a process is a run, and not another that has its number by now."""
    try:
        return b"dreamfusion_jax" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # not Linux, or the process has ended
        return not Path("/proc").is_dir()
