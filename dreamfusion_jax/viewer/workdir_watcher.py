"""Watches a work folder: its checkpoints, its mesh, and the progress of its run.

The folder is only read. The run may write and delete meanwhile, so failed reads are repeated.
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
from dreamfusion_jax.runs.checkpoint_faults import DamagedError
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import build_scene, init_state, with_objective_params

MESH = "mesh.glb"
_MAX_TRIES = 3  # to read a checkpoint that exists
# Of scenes that are kept although the run has deleted their checkpoints.
_MAX_CACHE_BYTES = 2**28
# A run without metrics for several of their intervals may have stopped.
_PATIENCE_S, _PATIENCE_INTERVALS = 30.0, 3.0


class _Failure(NamedTuple):
    """Of reading a checkpoint: how often, what it means, and whether that cannot change."""

    tries: int = 0
    sentence: str = ""
    is_damage: bool = False


class Snapshot(NamedTuple):
    """What a work folder holds, or has held since the viewer started.

    Attributes:
      scenes: step -> the scene's parameters, in order.
      mesh: the bytes of mesh.glb, if it exists.
      progress: the progress of the run, in a sentence.
      error: what cannot be read, and why; empty if nothing is wrong.
    """

    scenes: dict[int, Any] = {}
    mesh: bytes | None = None
    progress: str = ""
    error: str = ""


class WorkdirWatcher:
    """Reads a work folder whenever `refresh` is called.

    Attributes:
      config: the configuration of the run.
      scene: its scene.
      init_params: parameters of the scene before the first step.
      snapshot: the contents; `refresh` replaces it and never changes it, so any thread may read it.

    Raises:
      UserError: there is no run, or the run makes a flat image.
    """

    def __init__(self, workdir: AnyPath) -> None:
        self._workdir, self._file = workdir, workdir / "config.json"
        self.config: Config = read_config(self._file)
        if is_flat(self.config):
            raise UserError(f"--workdir={workdir} holds a flat image; there is nothing to orbit.")
        self.scene = build_scene(self.config.scene)
        self._optimizer = make_optimizer(self.config.optimizer, self.config.train.steps)
        self._like = init_state(self.scene, self._optimizer, self.config.train.seed)
        self.init_params = self._like.scene_params
        self._checkpoints = Checkpoints(workdir)
        self._failures: dict[int, _Failure] = {}  # by step
        self._stamps: dict[AnyPath, float | None] = {self._file: _stamp(self._file)}
        self._mismatch = ""  # set once the settings are those of another run
        self._lines: list[dict[str, float]] = []
        self.snapshot = Snapshot()

    def refresh(self, changed: Callable[[], object] = lambda: None) -> None:
        """Reads the folder once; calls `changed` whenever `snapshot` has been replaced."""
        before = self.snapshot
        try:
            self._read_small_files()
            steps = self._checkpoints.steps_now()
        except Exception as error:  # of many kinds; the next read may succeed
            self._update(error=f"{self._workdir} cannot be read ({_reason(error)}).")
        else:
            # Scenes newer than the newest checkpoint are of a run that was started again.
            newest = max(steps, default=0)
            self._failures = {k: x for k, x in self._failures.items() if k in steps}
            self._update(scenes={k: x for k, x in self.snapshot.scenes.items() if k <= newest})
            for step in reversed(steps):
                if step not in self.snapshot.scenes and self._load(step, steps):
                    changed()
            self._update(progress=self._progress(), error=self._mismatch or self._failure(steps))
        if self.snapshot is not before:
            changed()

    def close(self) -> None:
        """Closes the checkpoints."""
        self._checkpoints.close()

    def _update(self, **fields: Any) -> None:
        new = self.snapshot._replace(**fields)
        # Arrays are not compared, as those of a step never change.
        same = list(new.scenes) == list(self.snapshot.scenes) and new[1:] == self.snapshot[1:]
        self.snapshot = self.snapshot if same else new

    def _load(self, step: int, saved: list[int]) -> bool:
        """Reads a checkpoint; returns whether that succeeded, as it may have been deleted."""
        tries, _, is_damage = self._failures.get(step, _Failure())
        if is_damage and tries >= _MAX_TRIES:
            return False
        try:
            like = with_objective_params(
                self._like, self._optimizer, self._checkpoints.objective_params_like()
            )
            params = jax.device_put(self._checkpoints.restore_step(step, like).scene_params)
        except DamagedError as error:
            sentence = f"The checkpoint of step {step:,} is damaged ({error})."
            self._failures[step] = _Failure(tries + 1, sentence, is_damage=True)
            return False
        except Exception as error:  # It may be intact, so it is tried again.
            self._failures[step] = _Failure(tries + 1, str(error) or _reason(error))
            return False
        self._update(scenes=_evict({**self.snapshot.scenes, step: params}, saved))
        self._update(progress=self._progress())
        return True

    def _failure(self, saved: list[int]) -> str:
        for step in reversed(saved):
            failure = self._failures.get(step, _Failure())
            if failure.tries >= _MAX_TRIES:
                return failure.sentence
        return ""

    def _read_small_files(self) -> None:
        lines, mesh = self._workdir / metrics.FILE, self._workdir / MESH
        if self._is_new(lines):
            self._lines = metrics.read_metrics(lines)
        if self._is_new(mesh):
            self._update(mesh=mesh.read_bytes() if mesh.exists() else None)
        if self._is_new(self._file) and self._file.exists():
            self._mismatch = self._read_config_again()

    def _read_config_again(self) -> str:
        """Reads the settings again, as steps may grow; returns an error message or ""."""
        try:
            config = read_config(self._file)
        except UserError as error:
            return str(error)
        if (config.scene, config.optimizer) != (self.config.scene, self.config.optimizer):
            return f"{self._workdir} holds another scene now; restart the viewer."
        self.config = config
        return ""

    def _is_new(self, path: AnyPath) -> bool:
        """Returns whether a file was written, or deleted, since the last call."""
        before, now = self._stamps.get(path), _stamp(path)
        self._stamps[path] = now
        return now != before

    def _progress(self) -> str:
        stamp = self._stamps.get(self._workdir / metrics.FILE)
        # A bucket gets metrics only with checkpoints, so their age means nothing there.
        silent = time.time() - stamp if stamp and isinstance(self._workdir, Path) else 0.0
        return progress(self.config, max(self.snapshot.scenes, default=0), self._lines, silent)


def progress(config: Config, newest: int, lines: list[dict[str, float]], silent_s: float) -> str:
    """Describes the progress of a run in a sentence.

    Args:
      newest: the step of its newest checkpoint; 0 if there is none.
      lines: its metrics so far.
      silent_s: seconds since the last of them was written.
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


def _evict(scenes: dict[int, Any], saved: list[int]) -> dict[int, Any]:
    """Evicts the oldest unsaved scenes beyond the cache limit; returns the rest in order."""
    scenes = dict(sorted(scenes.items()))
    for step in list(scenes):
        total = sum(leaf.nbytes for x in scenes.values() for leaf in jax.tree.leaves(x))
        if step not in saved and total > _MAX_CACHE_BYTES:
            del scenes[step]
    return scenes


def _stamp(path: AnyPath) -> float | None:
    """Returns when a file was written; None if there is none."""
    try:
        return path.stat().st_mtime if isinstance(path, Path) else path.stat().mtime
    except FileNotFoundError:
        return None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
