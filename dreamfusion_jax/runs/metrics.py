"""Numbers and previews of a run: to a plain metrics.jsonl, to TensorBoard and, if asked for, wandb.

Distillation has no loss whose value means anything; what is worth watching is the size of the
residual, how much of the picture the object covers, and each regularizer. Each line also tells the
time spent so far, over all sessions of the run: `seconds`, and `device_seconds`, which counts each
device.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from dreamfusion_jax.runs.wandb_logger import WandbRun
from dreamfusion_jax.runtime.files import AnyPath, atomic_write, copy_folder

FILE = "metrics.jsonl"
_MAX_LINE_BYTES = 2**20  # beyond it nothing is ours


class ElapsedTime(NamedTuple):
    """Time that a run took, in seconds, and the same times the devices that ran."""

    seconds: float = 0.0
    device_seconds: float = 0.0


class MetricsWriter:
    """Writes the metrics of a run that starts, or goes on, after `first_step` steps.

    Its clock starts when it is made, with `devices` devices at work. Objects in a bucket cannot
    grow, so for a run there they are written here first, and `publish` copies them.

    Args:
      wandb: what also gets all of it.

    Attributes:
      path: the metrics.jsonl of this machine.
    """

    def __init__(
        self,
        workdir: AnyPath,
        first_step: int,
        devices: int = 1,
        wandb: WandbRun | None = None,
    ) -> None:
        self._workdir, self._devices, self._started = workdir, devices, time.monotonic()
        self._wandb = wandb
        self._scratch = None if isinstance(workdir, Path) else Path(tempfile.mkdtemp())
        folder = workdir if isinstance(workdir, Path) else self._fetch(workdir)
        self.path: Path = folder / FILE
        # Of all lines: what a step that is done again took the first time was spent, too.
        self._before = spent(read_metrics(self.path))
        _drop_lines_after(self.path, first_step)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Fetches the metrics from the device, writes them, and returns them as floats."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        # JSON knows no NaN.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, **self._spent()._asdict(), **known}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in finite.items():  # A curve has a gap elsewhere.
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.write(step, finite)
        return values

    def write_preview(self, step: int, picture: np.ndarray) -> None:
        """Shows a picture [H, W, 3] uint8 beside the curves."""
        self._board.add_image("preview", picture, step, dataformats="HWC")
        if self._wandb:
            self._wandb.write_preview(step, picture)

    def _spent(self) -> ElapsedTime:
        seconds = time.monotonic() - self._started
        return ElapsedTime(
            round(self._before.seconds + seconds, 3),
            round(self._before.device_seconds + seconds * self._devices, 3),
        )

    def publish(self) -> None:
        """Copies what was written so far to a bucket; here it is there already."""
        if self._scratch:
            self._board.flush()
            copy_folder(self._scratch, self._workdir)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.close()
        if self._scratch:
            copy_folder(self._scratch, self._workdir)
            shutil.rmtree(self._scratch)

    def _fetch(self, workdir: AnyPath) -> Path:
        assert self._scratch
        if (workdir / FILE).exists():
            (self._scratch / FILE).write_bytes((workdir / FILE).read_bytes())
        return self._scratch


def read_metrics(path: AnyPath, most: int | None = None) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, if there is one: its finite numbers by their names.

    Args:
      most: so many of the lines at most, evenly chosen, the first and the last among them.
    """
    lines = list(_own_lines(path)) if path.exists() else []
    if most and len(lines) > most:
        lines = [lines[round(i)] for i in np.linspace(0, len(lines) - 1, most)]
    return [numbers for line in lines if "step" in (numbers := _numbers(line))]


def _numbers(line: bytes) -> dict[str, float]:
    """The finite numbers of a line; none where it was cut short, as by the end of a run."""
    try:
        values = json.loads(line).items()
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {
        name: value
        for name, value in values
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max
    }


def spent(lines: list[dict[str, float]]) -> ElapsedTime:
    """The time that a run had taken at its last line; nothing where it was not written down."""
    last = lines[-1] if lines else {}
    return ElapsedTime(*(last.get(name, 0.0) for name in ElapsedTime._fields))


def _drop_lines_after(path: Path, step: int) -> None:
    """Forgets what a run wrote after the checkpoint it goes on from; it will be written anew."""
    if path.exists():
        kept = [line.rstrip(b"\n") + b"\n" for line in _own_lines(path) if _step(line) <= step]
        atomic_write(path, b"".join(kept))


def _own_lines(path: AnyPath) -> Iterator[bytes]:
    """The lines of a file, up to one that is longer than any of ours."""
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(_MAX_LINE_BYTES), b"")
        yield from itertools.takewhile(lambda line: len(line) < _MAX_LINE_BYTES, lines)


def _step(line: bytes) -> float:
    """The step that a line tells of; infinity where it was cut short."""
    step = _numbers(line).get("step")
    return step if isinstance(step, int) else math.inf
