"""Coarse meshes of assets whose runs are not finished.

Each is made by a process of its own, on the CPU and of the least priority, one at a time and at
most a tenth of the time, so that a run neither waits nor shares its accelerator's memory.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dreamfusion_jax.config.flags import is_flat
from dreamfusion_jax.webui.library import StoredAsset

COMMAND = (sys.executable, "-m", "dreamfusion_jax.webui.draft_mesh")
_LEAST_PRIORITY = 19
_PAUSE = 9.0  # times the seconds that the last one took,
_MAX_PAUSE_S = 300.0  # or less: while no page is open, nobody sees that it has ended


class Draft(NamedTuple):
    """A coarse mesh.

    Attributes:
      step: at least so many steps are in it, as the run goes on while it is made.
      path: of the GLB.
    """

    step: int
    path: str


class _Job(NamedTuple):
    """A draft that is being made."""

    name: str
    draft: Draft
    process: subprocess.Popen[bytes]
    begun_s: float


class Drafts:
    """Makes drafts of the assets below `root` when they are asked for.

    Args:
      folder: where their files are kept.
      command: what makes one; its flags are appended.
      clock: gives seconds.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._folder, self._command, self._clock = root, folder, list(command), clock
        self._guard = threading.Lock()
        self._made: dict[str, Draft] = {}
        self._tried: dict[str, int] = {}  # the newest step, also where there was no surface yet
        self._job: _Job | None = None
        self._earliest_s = -float("inf")

    def get(self, asset: StoredAsset) -> Draft | None:
        """Returns the newest draft of an asset at once, and begins another if steps were saved."""
        with self._guard:
            self._collect()
            if self._is_due(asset):
                self._begin(asset)
            return self._made.get(asset.name)

    def close(self) -> None:
        """Ends the process at work."""
        with self._guard:
            if self._job:
                self._job.process.kill()
                self._job.process.wait()
                self._job = None

    def _is_due(self, asset: StoredAsset) -> bool:
        is_new = asset.step > self._tried.get(asset.name, 0) and not is_flat(asset.config)
        return is_new and self._job is None and self._clock() >= self._earliest_s

    def _begin(self, asset: StoredAsset) -> None:
        folder = self._folder / asset.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{asset.step}.glb"
        process = subprocess.Popen(
            [*self._command, f"--workdir={self._root / asset.name}", f"--file={path}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if hasattr(os, "setpriority"):  # not on Windows
            with contextlib.suppress(OSError):  # It has ended already.
                os.setpriority(os.PRIO_PROCESS, process.pid, _LEAST_PRIORITY)
        self._tried[asset.name] = asset.step
        self._job = _Job(asset.name, Draft(asset.step, str(path)), process, self._clock())

    def _collect(self) -> None:
        """Keeps the draft of a process that has ended, if it made one."""
        job = self._job
        if job is None or job.process.poll() is None:
            return
        self._job, now = None, self._clock()
        self._earliest_s = now + min(_PAUSE * (now - job.begun_s), _MAX_PAUSE_S)
        if job.process.returncode == 0:
            before = self._made.get(job.name)
            self._made[job.name] = job.draft
            if before:
                Path(before.path).unlink(missing_ok=True)
