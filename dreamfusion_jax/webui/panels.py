"""What the studio shows of one asset: status, curves, images, mesh, downloads, as plain values.

Files are copied to a private folder before they are handed to the web server, which therefore
serves nothing of the studio's root by itself.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.runs import metrics
from dreamfusion_jax.runs.page import build, curves
from dreamfusion_jax.runs.page.curves import Chart
from dreamfusion_jax.webui.jobs import Queue
from dreamfusion_jax.webui.library import FINISHED, RUNNING, StoredAsset, asset_file

QUEUED, STARTING, FAILED, MISSING = "queued", "starting", "failed", "missing"
DOWNLOADS = (
    *("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", "turntable.mp4"),
    *("turntable.gif", "poster.png", "contact_sheet.png", "picture.png", "comparison.png"),
    build.FILE,
)
_MAX_POINTS = 300
_STEPS_DONE = re.compile(r"\bstep (\d+)/([1-9]\d*)")
_CURVES = ("step", "residual_rms", "opacity_mean")


class Status(NamedTuple):
    """What a run is doing, for one line and a bar.

    Attributes:
      state: of the library, or `QUEUED`, `STARTING`, `FAILED` or `MISSING`.
      detail: the newest line of the run, with the time left; or the sentence of its failure.
      fraction: of the steps done, from 0 to 1.
    """

    state: str
    prompt: str
    detail: str
    fraction: float


def status(queue: Queue, name: str, asset: StoredAsset | None) -> Status:
    """Describes the run in the folder `name`.

    Args:
      asset: what the folder tells; None: nothing yet.
    """
    prompt = asset.config.train.prompt if asset else name
    saved = asset.step / asset.config.train.steps if asset else 0.0
    waiting = queue.waiting
    if name in waiting:
        return Status(QUEUED, prompt, f"number {waiting.index(name) + 1} in the queue", 0.0)
    if name and name == queue.current:
        tail = queue.log_tail(name)
        state = RUNNING if asset and asset.state == RUNNING else STARTING
        return Status(state, prompt, tail[-1] if tail else "", max(saved, _fraction_in(tail)))
    if asset and asset.state == RUNNING:
        return Status(RUNNING, prompt, "started elsewhere", saved)
    is_finished = asset is not None and asset.state == FINISHED
    if name and not is_finished and (error := queue.error_of(name)):
        return Status(FAILED, prompt, error, saved)
    if asset is None:
        return Status(MISSING, prompt, "", 0.0)
    done = f"{asset.step:,} of {asset.config.train.steps:,} steps are done"
    return Status(asset.state, prompt, done, saved)


def _fraction_in(lines: list[str]) -> float:
    """Returns the fraction of the steps that the newest line about them tells; 0: there is none."""
    for line in reversed(lines):
        if match := _STEPS_DONE.search(line):
            return int(match[1]) / int(match[2])
    return 0.0


def charts(root: Path, name: str) -> list[Chart]:
    """Returns the curves of the residual and the opacity, as far as the run has come."""
    file = asset_file(root, name, metrics.FILE)
    lines = metrics.read_metrics(file, _MAX_POINTS) if file else []
    return curves.charts([{n: line[n] for n in _CURVES if n in line} for line in lines])


def command(asset: StoredAsset) -> str:
    """Returns the command that makes the asset again."""
    return reproduce.shell_command(asset.config)


class Shelf:
    """Copies of assets' files in a private folder, made anew when the original changes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dreamfusion_jax-studio-")

    @property
    def drafts(self) -> Path:
        """A folder beside the copies, for meshes of unfinished assets."""
        return Path(self._folder.name) / "drafts"

    @property
    def cache(self) -> str:
        """A folder beside the copies, for the web server's own."""
        return f"{self._folder.name}/cache"

    def get(self, root: Path, name: str, file: str) -> str | None:
        """Returns the path of a copy of an asset's file; None where there is no such file."""
        source = asset_file(root, name, file)
        if source is None:
            return None
        try:
            changed = source.stat()
            folder = (
                Path(self._folder.name)
                / "copies"
                / name
                / f"{changed.st_mtime_ns}-{changed.st_size}"
            )
            copy = folder / file
            if not copy.exists():
                folder.mkdir(parents=True, exist_ok=True)
                part = folder / f"{file}.part"
                shutil.copyfile(source, part)
                part.replace(copy)
        except FileNotFoundError:  # replaced meanwhile
            return None
        return str(copy)

    def downloads(self, root: Path, name: str) -> list[str]:
        """Returns copies of all files of an asset that people take away."""
        copies = (self.get(root, name, file) for file in DOWNLOADS)
        return [copy for copy in copies if copy]

    def close(self) -> None:
        """Removes all copies."""
        self._folder.cleanup()
