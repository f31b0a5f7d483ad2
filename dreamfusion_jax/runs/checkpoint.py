"""Checkpoints of a run, kept by Orbax: the last few states in <workdir>/checkpoints.

Each holds the state and a digest of every array in it, so that corruption is detected whatever its
cause. In a job of several processes all of them write and read, and must make the same calls.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamfusion_jax.config.flags import Config, is_flat, read_config
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.runs import distributed
from dreamfusion_jax.runs.workdir import check_places
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, absolute, as_path
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import TrainState, build_scene, init_state
from dreamfusion_jax.training.step import across_processes, replicate

MAX_TO_KEEP = 2
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
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("state", "digest"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=MAX_TO_KEEP,
                read_only=devices is None,
                create=devices is not None,
                cleanup_tmp_directories=devices is not None,
            ),
        )

    def latest_step(self) -> int:
        """Returns the step of the newest checkpoint, intact or not; 0 where there is none."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        return list(self._manager.all_steps()) if self._folder.is_dir() else []

    def steps_now(self) -> list[int]:
        """Lists the steps of all checkpoints in order, including those that another job saves."""
        if not self._folder.is_dir():
            return []
        self._manager.reload()
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

        Warns of damaged checkpoints and, unless opened for reading only, moves them aside.

        Raises:
          UserError: none is intact.
        """
        damaged: list[int] = []
        reason = ""
        for step in sorted(self._steps(), reverse=True):
            state = None
            try:
                state = self.restore_step(step, like)
            except Exception as error:  # Orbax raises many kinds; all mean damage.
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                if FORBIDDEN.search(str(error)):
                    raise UserError(
                        f"{self._folder / str(step)} cannot be read: {reason}"
                    ) from error
            if distributed.all_agree(state is not None) and state is not None:
                self._quarantine(damaged)
                return state
            damaged.append(step)
            _warn(f"the checkpoint of step {step} in {self._folder} is damaged ({reason}).")
        raise UserError(
            f"No checkpoint in {self._folder} can be read ({reason}); delete that folder to start"
            " again, or choose another --workdir."
        )

    def restore_step(self, step: int, like: TrainState) -> TrainState:
        """Restores the state of one checkpoint, as `restore` does.

        Raises:
          Exception: of any kind; the checkpoint is damaged, or gone.
        """
        folder = self._folder / str(step)
        if (folder / "default").exists():
            raise UserError(
                f"{folder} was written by an earlier version of this program; choose another"
                " --workdir."
            )
        template: Any = jax.device_get(like)
        state = self._reader.restore(folder / "state", args=ocp.args.StandardRestore(template))
        stored = self._digest_reader.restore(folder / "digest")
        if stored != digest(state):
            raise ValueError("its contents are not those that were written")
        return state

    def _quarantine(self, steps: list[int]) -> None:
        """Moves damaged checkpoints to <workdir>/damaged_checkpoints."""
        if self._devices is None or not steps:
            return
        if distributed.is_primary():
            target = self._workdir / "damaged_checkpoints"
            target.mkdir(exist_ok=True)
            for step in steps:
                count = sum(path.name.startswith(f"{step}_") for path in target.iterdir())
                (self._folder / str(step)).rename(target / f"{step}_{count}")
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


def load_run(workdir: AnyPath) -> SavedRun:
    """Loads the configuration and the newest intact state of a work folder.

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
        return SavedRun(config, scene, checkpoints.restore(like))
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
    workdir = as_path(workdir_name)
    check_places(workdir)
    run = load_run(workdir)
    if is_flat(run.config):
        raise UserError(f"--workdir={workdir} holds a flat image; {refusal}.")
    return workdir, run


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
