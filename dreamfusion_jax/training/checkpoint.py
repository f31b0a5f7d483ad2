"""Checkpoints of a run, kept by Orbax: the last few states in <workdir>/checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from dreamfusion_jax.config import Config, read_config
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import TrainState, build_scene, init_state

KEPT = 2


class Checkpoints:
    """Saves and restores states. States are written in the background, whole or not at all."""

    def __init__(self, workdir: Path) -> None:
        self._folder = (workdir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int:
        """The steps done in the newest checkpoint; 0 where there is none."""
        return self._manager.latest_step() or 0

    def save(self, state: TrainState) -> None:
        """Saves a state, unless its step is saved already."""
        host_state = jax.device_get(state)  # Before the next step may donate its buffers.
        step = int(host_state.step)
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(host_state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, as numpy arrays in the structure and shapes of `like`."""
        step = self.latest_step()
        template: Any = jax.device_get(like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except Exception as error:  # Orbax raises many kinds; all mean the same to the user.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"The checkpoint of step {step} in {self._folder} cannot be read ({reason});"
                " delete that step's folder, or choose another --workdir."
            ) from error

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


class SavedRun(NamedTuple):
    """What a work folder holds: enough to look at the scene again."""

    config: Config
    scene: Scene
    state: TrainState


def load_run(workdir: Path) -> SavedRun:
    """The configuration and the newest state in a work folder."""
    config = read_config(workdir / "config.json")
    scene = build_scene(config.scene)
    checkpoints = Checkpoints(workdir)
    try:
        if not checkpoints.latest_step():
            raise UserError(f"{workdir} holds no checkpoint yet; let the run go on for longer.")
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        like = init_state(scene, optimizer, config.train.seed)
        return SavedRun(config, scene, checkpoints.restore(like))
    finally:
        checkpoints.close()
