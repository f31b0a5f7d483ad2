"""Checkpoints of a run, kept by Orbax: the last few states in <workdir>/checkpoints.

Each holds the state and a digest of every array in it, so that corruption is detected whatever its
cause. In a job of several processes all of them write and read, and must make the same calls.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamfusion_jax.config.flags import Config, is_flat, read_config
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.runs import distributed
from dreamfusion_jax.runs.checkpoint_faults import (
    DamagedError,
    array_mismatch,
    fault,
    name_mismatch,
    unreadable,
)
from dreamfusion_jax.runs.workdir import check_places
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, absolute, as_path, move
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import (
    TrainState,
    build_scene,
    init_state,
    with_objective_params,
)
from dreamfusion_jax.training.step import across_processes, replicate

Value = TypeVar("Value")

MAX_TO_KEEP = 2
_PAUSES_S = (0.1, 0.2, 0.3)  # after each time that a checkpoint could not be read
_MAX_LOOKS = 50  # for a checkpoint that another job does not delete before it is read
FULL = re.compile("ENOSPC|EDQUOT|No space left|quota exceeded", re.IGNORECASE)
FORBIDDEN = re.compile("EACCES|EROFS|PERMISSION_DENIED|Permission denied|Read-only", re.IGNORECASE)


class Checkpoints:
    """Saves and restores states. States are written in the background, whole or not at all.

    Args:
      workdir: the run's folder.
      devices: those of all processes, which hold the states to save; None to only read.
    """

    def __init__(self, workdir: AnyPath, devices: list[jax.Device] | None = None) -> None:
        self._workdir, self._devices = absolute(workdir), devices
        self._folder = self._workdir / "checkpoints"
        self._reader = _reader(ocp.StandardCheckpointHandler)
        self._digest_reader = _reader(ocp.JsonCheckpointHandler)
        self._manager = look_again(self._open)

    def _open(self) -> ocp.CheckpointManager:
        reads_only = self._devices is None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=MAX_TO_KEEP,
            read_only=reads_only,
            create=not reads_only,
            cleanup_tmp_directories=not reads_only,
        )
        return ocp.CheckpointManager(self._folder, item_names=("state", "digest"), options=options)

    def latest_step(self) -> int:
        """Returns the step of the newest checkpoint, intact or not; 0 where there is none."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        return list(self._manager.all_steps()) if self._folder.is_dir() else []

    def steps_now(self) -> list[int]:
        """Lists the steps of all checkpoints in order, including those that another job saves."""
        if not self._folder.is_dir():
            return []
        look_again(self._manager.reload)
        return sorted(self._steps())

    def save(self, state: TrainState) -> None:
        """Saves a state that is on the devices, unless its step is saved already.

        Raises:
          UserError: a newer state is saved.
          RunError: this state, or the one before it, which was being written, does not fit on the
            disk.
        """
        host_state = jax.device_get(state)
        step = int(host_state.step)
        if step == self.latest_step():
            return
        self.require_not_newer(step)
        assert self._devices is not None, "opened for reading only"
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(across_processes(state, self._devices)),
            digest=ocp.args.JsonSave(digest(host_state)),
        )
        with self._disk_errors():
            saved = self._manager.save(step, args=items)
        assert saved, "Orbax declines no step that is newer than all others"

    def require_not_newer(self, step: int) -> None:
        """Raises a UserError where a checkpoint of a later step is there."""
        if step < (newest := self.latest_step()):
            raise UserError(
                f"{self._workdir} already holds step {newest}, which is newer than step {step}:"
                " save to another folder."
            )

    def restore(self, like: TrainState) -> TrainState:
        """Restores the newest intact state as numpy arrays in the structure and shapes of `like`.

        Warns of damaged checkpoints and, unless opened for reading only, moves them aside. A step
        that another job deletes meanwhile is looked for again.

        Raises:
          UserError: all are damaged.
          RunError: one cannot be read, which proves no damage, or is of other settings.
        """
        damaged: dict[int, str] = {}
        for _ in range(_MAX_LOOKS):
            steps = [step for step in self.steps_now() if step not in damaged]
            if not steps:
                break
            state, error = self._restore_patiently(step := steps[-1], like)
            if distributed.all_agree(state is not None) and state is not None:
                self._report_damage(damaged)
                return state
            if not distributed.all_agree(not isinstance(error, UserError)):
                raise error or unreadable(self._folder / str(step), "in another process")
            if distributed.all_agree((self._folder / str(step)).is_dir()):
                damaged[step] = str(error or "in another process")
        if self.latest_step() not in (0, *damaged):
            raise RunError(
                f"The checkpoints in {self._folder} are deleted faster than they can be read: try"
                " again when the run that writes them is done, or with a higher --checkpoint_every."
            )
        reason = next(iter(damaged.values()), "none is left")
        raise UserError(
            f"No checkpoint in {self._folder} can be read ({reason}); all of it is kept: choose"
            " another --workdir to start again."
        )

    def _restore_patiently(
        self, step: int, like: TrainState
    ) -> tuple[TrainState | None, Exception | None]:
        """Returns the state or, where it cannot be read several times and is not gone, why."""
        error: Exception | None = None
        for pause_s in _PAUSES_S:
            try:
                return self.restore_step(step, like), None
            except (DamagedError, UserError) as failure:
                error = failure
            time.sleep(pause_s)
            if not (self._folder / str(step)).is_dir():
                return None, None
        return None, error

    def restore_step(self, step: int, like: TrainState) -> TrainState:
        """Restores the state of one checkpoint, as `restore` does.

        Raises:
          DamagedError: its bytes are not those that were written, or it is gone.
          RunError: it cannot be read, or is of other settings.
        """
        folder = self._folder / str(step)
        if (folder / "default").exists():
            raise UserError(
                f"{folder} was written by an earlier version of this program; choose another"
                " --workdir."
            )
        template: Any = jax.device_get(like)
        try:
            state = self._reader.restore(folder / "state", args=ocp.args.StandardRestore(template))
            if self._digest_reader.restore(folder / "digest") != digest(state):
                raise ValueError("its contents are not those that were written")
        except Exception as error:  # Orbax raises many kinds.
            raise fault(folder, error, self._mismatch(folder, template)) from error
        return state

    def objective_params_like(self) -> Any:
        """Returns zeros like the objective's own params in the newest readable checkpoint, or {}.

        Their shapes follow from the prior, which those who only look at a scene do not load.
        """
        for step in reversed(self.steps_now()):
            with contextlib.suppress(Exception):  # Damaged: that is for `restore` to say.
                tree = self._reader.metadata(self._folder / str(step) / "state").item_metadata.tree
                own = tree["params"].get("objective") or {}
                return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), own)
        return {}

    def _mismatch(self, folder: AnyPath, template: TrainState) -> str:
        """Describes how a checkpoint's arrays differ from those wanted; "": not, or not known."""
        with contextlib.suppress(Exception):  # Damaged: that is for `fault` to say.
            stored = self._digest_reader.restore(folder / "digest")
            if named := name_mismatch(stored, digest(template)):
                return named
            metadata = self._reader.metadata(folder / "state")
            return array_mismatch(metadata.item_metadata.tree, template)
        return ""

    def _report_damage(self, damaged: dict[int, str]) -> None:
        """Warns of damaged checkpoints, and moves them to <workdir>/damaged_checkpoints."""
        damaged = {k: x for k, x in damaged.items() if (self._folder / str(k)).is_dir()}
        for step, reason in damaged.items():
            _warn(f"the checkpoint of step {step} in {self._folder} is damaged ({reason}).")
        if self._devices is None or not damaged:
            return
        if distributed.is_primary():
            target = self._workdir / "damaged_checkpoints"
            target.mkdir(exist_ok=True)
            for step in damaged:
                count = sum(path.name.startswith(f"{step}_") for path in target.iterdir())
                move(self._folder / str(step), target / f"{step}_{count}")
        distributed.all_agree(True)  # No process lists the folder before all are moved.
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is written. Raises as `save` does."""
        with self._disk_errors():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns the errors of a full or write-protected disk into one sentence."""
        try:
            yield
        except Exception as error:  # of many kinds, and from threads
            if not (FULL.search(str(error)) or FORBIDDEN.search(str(error))):
                raise
            reason = "the disk is full" if FULL.search(str(error)) else "no permission to write"
            raise RunError(
                f"A checkpoint could not be written to {self._folder} ({reason}); what was"
                " saved before is kept: fix that, and run the same command to continue."
            ) from error


class SavedRun(NamedTuple):
    """The contents of a work folder that are needed to render the scene."""

    config: Config
    scene: Scene
    state: TrainState


def steps_done(workdir: AnyPath) -> int:
    """Returns the step of a work folder's newest checkpoint; 0 where there is none."""
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.latest_step()
    finally:
        checkpoints.close()


def require_not_newer(workdir: AnyPath, step: int) -> None:
    """Raises a UserError where a work folder holds a checkpoint of a later step."""
    checkpoints = Checkpoints(workdir)
    try:
        checkpoints.require_not_newer(step)
    finally:
        checkpoints.close()


def load_run(workdir: AnyPath, step: int | None = None) -> SavedRun:
    """Loads the configuration of a work folder and its newest intact state, or that of `step`.

    Raises:
      UserError: there is no run, or no intact checkpoint.
    """
    config = read_config(workdir / "config.json")
    scene = build_scene(config.scene)
    checkpoints = Checkpoints(workdir)
    try:
        if not checkpoints.latest_step():
            raise UserError(f"{workdir} holds no checkpoint yet; let the run continue.")
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        like = init_state(scene, optimizer, config.train.seed)
        like = with_objective_params(like, optimizer, checkpoints.objective_params_like())
        if step is None:
            return SavedRun(config, scene, checkpoints.restore(like))
        try:
            return SavedRun(config, scene, checkpoints.restore_step(step, like))
        except DamagedError as error:
            raise UserError(f"The checkpoint of step {step} in {workdir}: {error}.") from error
    finally:
        checkpoints.close()


def save_state(workdir: AnyPath, state: TrainState) -> None:
    """Writes a state as the newest checkpoint of a work folder."""
    devices = jax.local_devices()[:1]
    checkpoints = Checkpoints(workdir, devices)
    try:
        checkpoints.save(replicate(state, devices))
    finally:
        checkpoints.close()


def open_scene(workdir_name: str, refusal: str) -> tuple[AnyPath, SavedRun]:
    """Loads the scene in a work folder, and checks that its files may be overwritten.

    Args:
      refusal: what cannot be made of a flat image, as a clause.

    Raises:
      UserError: there is no scene.
    """
    workdir = as_path(workdir_name, "workdir")
    check_places(workdir)
    run = load_run(workdir)
    if is_flat(run.config):
        raise UserError(f"--workdir={workdir} holds a flat image; {refusal}.")
    return workdir, run


def look_again(action: Callable[[], Value]) -> Value:
    """Repeats an action that fails because another job has deleted what was there a moment ago."""
    for pause_s in _PAUSES_S:
        try:
            return action()
        except FileNotFoundError:
            time.sleep(pause_s)
    return action()


def _reader(handler: Any) -> ocp.Checkpointer:
    """Makes a reader without barriers, so that a process that fails keeps no other waiting."""
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"reader_{index}"
    )
    return ocp.Checkpointer(handler(), multiprocessing_options=options)


def digest(state: TrainState) -> dict[str, str]:
    """Computes SHA-256 of every array, by its path in the state."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): _sha256(np.asarray(leaf)) for path, leaf in leaves}


def _sha256(array: np.ndarray) -> str:
    kind = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(kind + np.ascontiguousarray(array).tobytes()).hexdigest()


def _warn(text: str) -> None:
    if distributed.is_primary():
        print(f"Warning: {text}", file=sys.stderr, flush=True)
