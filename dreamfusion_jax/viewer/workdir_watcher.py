"""A work folder as it changes: the checkpoints in it, the mesh, and how far its run is.

Everything is only read. The run may write and delete meanwhile: what cannot be read is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dreamfusion_jax.config.flags import Config, is_flat, read_config
from dreamfusion_jax.runs import metrics
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import build_scene, init_state

MESH = "mesh.glb"
_TRIES = 3  # of a checkpoint that is there and cannot be read
# Scenes that the run has deleted since, and that are kept to look back at.
_REMEMBERED_BYTES = 2**28
# Metrics come at intervals; a run that misses some of them may have stopped.
_PATIENCE_S, _PATIENCE_INTERVALS = 30.0, 3.0


class Found(NamedTuple):
    """What a work folder holds, or has held since the viewer started.

    Attributes:
      scenes: step -> the scene's parameters, in order.
      mesh: the bytes of mesh.glb, if it is there.
      progress: how far the run is, in a sentence.
      trouble: what cannot be read, and why; mostly empty.
    """

    scenes: dict[int, Any] = {}
    mesh: bytes | None = None
    progress: str = ""
    trouble: str = ""


class WorkdirWatcher:
    """Looks into a work folder again and again.

    Attributes:
      config: the run's.
      scene: its scene.
      unborn: parameters of the scene before the first step.
      found: replaced, never changed, by `refresh`; any thread may read it.

    Raises:
      UserError: there is no run, or none that has sides to look at.
    """

    def __init__(self, workdir: AnyPath) -> None:
        self._workdir, self._file = workdir, workdir / "config.json"
        self.config: Config = read_config(self._file)
        if is_flat(self.config):
            raise UserError(f"--workdir={workdir} holds a flat picture; there is nothing to orbit.")
        self.scene = build_scene(self.config.scene)
        optimizer = make_optimizer(self.config.optimizer, self.config.train.steps)
        self._like = init_state(self.scene, optimizer, self.config.train.seed)
        self.init_params = self._like.scene_params
        self._checkpoints = Checkpoints(workdir)
        self._failures: dict[int, tuple[int, str]] = {}  # step -> how often, and why at last
        self._stamps: dict[AnyPath, float | None] = {self._file: _stamp(self._file)}
        self._mismatch = ""  # of the settings, which have become another run's
        self._lines: list[dict[str, float]] = []
        self.found = Found()

    def refresh(self, changed: Callable[[], object] = lambda: None) -> None:
        """Looks once; calls `changed` whenever `found` has become another one."""
        before = self.found
        try:
            self._read_small_files()
            steps = self._checkpoints.steps_now()
        except Exception as error:  # of a bucket of many kinds; it may be back at the next look
            self._show(trouble=f"{self._workdir} cannot be read ({_reason(error)}).")
        else:
            # What is newer than the newest checkpoint is of a run that was begun anew.
            newest = max(steps, default=0)
            self._failures = {k: x for k, x in self._failures.items() if k in steps}
            self._show(scenes={k: x for k, x in self.found.scenes.items() if k <= newest})
            for step in reversed(steps):
                if step not in self.found.scenes and self._load(step, steps):
                    changed()
            self._show(progress=self._progress(), trouble=self._mismatch or self._damage(steps))
        if self.found is not before:
            changed()

    def close(self) -> None:
        self._checkpoints.close()

    def _show(self, **fields: Any) -> None:
        new = self.found._replace(**fields)
        # Arrays are not compared: a step's are always the same ones.
        same = list(new.scenes) == list(self.found.scenes) and new[1:] == self.found[1:]
        self.found = self.found if same else new

    def _load(self, step: int, saved: list[int]) -> bool:
        """Whether a checkpoint could be read. The run may have deleted it since it was listed."""
        tries, _ = self._failures.get(step, (0, ""))
        if tries == _TRIES:
            return False
        try:
            params = jax.device_put(self._checkpoints.restore_step(step, self._like).scene_params)
        except Exception as error:  # Orbax raises many kinds
            self._failures[step] = tries + 1, _reason(error)
            return False
        self._show(scenes=_forget({**self.found.scenes, step: params}, saved))
        self._show(progress=self._progress())
        return True

    def _damage(self, saved: list[int]) -> str:
        for step in reversed(saved):
            tries, reason = self._failures.get(step, (0, ""))
            if tries == _TRIES:
                return f"The checkpoint of step {step:,} is damaged ({reason})."
        return ""

    def _read_small_files(self) -> None:
        lines, mesh = self._workdir / metrics.FILE, self._workdir / MESH
        if self._is_new(lines):
            self._lines = metrics.read_metrics(lines)
        if self._is_new(mesh):
            self._show(mesh=mesh.read_bytes() if mesh.exists() else None)
        if self._is_new(self._file) and self._file.exists():
            self._mismatch = self._read_config_again()

    def _read_config_again(self) -> str:
        """A run may go on with more steps. Returns what is wrong with its settings, if anything."""
        try:
            config = read_config(self._file)
        except UserError as error:
            return str(error)
        if (config.scene, config.optimizer) != (self.config.scene, self.config.optimizer):
            return f"{self._workdir} holds another scene now; start the viewer again."
        self.config = config
        return ""

    def _is_new(self, path: AnyPath) -> bool:
        """Whether a file was written, or deleted, since the last time."""
        before, now = self._stamps.get(path), _stamp(path)
        self._stamps[path] = now
        return now != before

    def _progress(self) -> str:
        stamp = self._stamps.get(self._workdir / metrics.FILE)
        # A bucket gets its metrics with the checkpoints, so that silence there says nothing.
        silent = time.time() - stamp if stamp and isinstance(self._workdir, Path) else 0.0
        return progress(self.config, max(self.found.scenes, default=0), self._lines, silent)


def progress(config: Config, newest: int, lines: list[dict[str, float]], silent_s: float) -> str:
    """How far a run is, in a sentence.

    Args:
      newest: the step of its newest checkpoint; 0 if there is none.
      lines: its metrics so far.
      silent_s: seconds since the last one of them was written.
    """
    steps = config.train.steps
    if newest >= steps:
        return f"Finished: all {newest:,} steps are done."
    if not lines:
        where = f"after step {newest:,} of {steps:,}" if newest else "before its first steps"
        return f"The run is {where}."
    where = f"step {int(lines[-1]['step']):,} of {steps:,}"
    times = [line.get("seconds", 0.0) for line in lines[-2:]]
    if silent_s < _PATIENCE_S + _PATIENCE_INTERVALS * max(times[-1] - times[0], 0.0):
        return f"Running: {where}."
    return f"Stopped, it seems: {where}, silent for {silent_s / 60.0:,.0f} min."


def _forget(scenes: dict[int, Any], saved: list[int]) -> dict[int, Any]:
    """In order, without the oldest that are not saved and too much to remember."""
    kept = dict(sorted(scenes.items()))
    for step in list(kept):
        bytes_kept = sum(leaf.nbytes for x in kept.values() for leaf in jax.tree.leaves(x))
        if step not in saved and bytes_kept > _REMEMBERED_BYTES:
            del kept[step]
    return kept


def _stamp(path: AnyPath) -> float | None:
    """When a file was written; None if there is none."""
    try:
        return path.stat().st_mtime if isinstance(path, Path) else path.stat().mtime
    except FileNotFoundError:
        return None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
