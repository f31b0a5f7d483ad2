"""Sends metrics and previews to Weights & Biases, where `--wandb=project` asks for it.

wandb's own environment variables apply, such as WANDB_MODE=offline. A run that is continued in its
work folder is continued there, too: its id is kept in wandb.json.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamfusion_jax.config.flags import Config, to_dict
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path, atomic_write, read_json

FILE = "wandb.json"


def require_wandb() -> Any:
    """Imports wandb.

    Raises:
      UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--wandb needs a package that is not installed: pip install wandb."
        ) from error
    return wandb


class WandbRun:
    """One run of the wandb project `config.run.wandb`, named by its prompt.

    Raises:
      RunError: wandb does not start, as where nobody has logged in.
    """

    def __init__(self, config: Config) -> None:
        self._wandb, workdir = require_wandb(), as_path(config.run.workdir)
        here = {"dir": workdir} if isinstance(workdir, Path) else {}
        try:
            self._run = self._wandb.init(
                project=config.run.wandb,
                id=_id(workdir),
                resume="allow",
                name=config.train.prompt[:128],
                config=to_dict(config),
                **here,
            )
        except Exception as error:  # of many kinds: login, network, project
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(
                f"--wandb={config.run.wandb} does not start ({reason:.300}): fix that, set"
                " WANDB_MODE=offline, or leave --wandb out."
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the finite numbers of a step."""
        self._run.log(dict(values), step=step)

    def write_preview(self, step: int, image: np.ndarray) -> None:
        """Sends an image [H, W, 3] uint8 of the scene after a step."""
        self._run.log({"preview": self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Waits until everything is sent, or written."""
        self._run.finish()


def _id(workdir: AnyPath) -> str:
    """Returns wandb's id of the run in this folder; makes one if there is none."""
    try:
        return str(read_json(workdir / FILE)["id"])
    except (OSError, ValueError, LookupError, TypeError):
        new = uuid.uuid4().hex[:12]
        atomic_write(workdir / FILE, (json.dumps({"id": new}) + "\n").encode())
        return new
