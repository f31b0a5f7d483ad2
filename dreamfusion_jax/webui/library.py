"""The assets below one folder, as their files describe them, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dreamfusion_jax.config.flags import Config, read_config
from dreamfusion_jax.runs import lock
from dreamfusion_jax.runs.outputs_record import read_record
from dreamfusion_jax.runs.workdir import newest_checkpoint
from dreamfusion_jax.runtime.errors import UserError

RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"


class StoredAsset(NamedTuple):
    """What the folder of an asset tells.

    Attributes:
      name: of the folder.
      state: `RUNNING`, `STOPPED` or `FINISHED`.
      step: steps in the newest checkpoint.
    """

    name: str
    config: Config
    state: str
    step: int

    @property
    def summary(self) -> str:
        """One line for lists."""
        done = "" if self.state == FINISHED else f", {self.step} of {self.config.train.steps} steps"
        return f"{self.config.train.prompt} ({self.state}{done})"


def stored_assets(root: Path) -> list[StoredAsset]:
    """Lists the assets below `root`, the newest first; folders that hold none are left out."""
    configs = [path for path in root.glob("*/config.json") if _is_inside(path, root)]
    configs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = (read_asset(root, path.parent.name) for path in configs)
    return [asset for asset in found if asset is not None]


def read_asset(root: Path, name: str) -> StoredAsset | None:
    """Reads one asset; None where the folder is missing or cannot be read as a run."""
    folder = asset_file(root, name, "config.json")
    if folder is None:
        return None
    folder = folder.parent
    try:
        config = read_config(folder / "config.json")
        step = newest_checkpoint(folder)
        record = read_record(folder)
    except (OSError, UserError):
        return None
    if lock.is_held(folder):
        state = RUNNING
    else:
        is_done = record is not None and record.step >= config.train.steps
        state = FINISHED if is_done else STOPPED
    return StoredAsset(name, config, state, step)


def asset_file(root: Path, name: str, file: str) -> Path | None:
    """Returns a file of an asset; None where there is none, or a name or link leads elsewhere."""
    path = root / name / file
    plain = all(
        part and part not in (".", "..") and Path(part).name == part for part in (name, file)
    )
    return path if plain and _is_inside(path, root) and path.is_file() else None


def _is_inside(path: Path, root: Path) -> bool:
    """Returns whether `path` is two levels below `root` also after all links are followed."""
    try:
        return path.resolve().parent.parent == root.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself; a NUL in the name
        return False
