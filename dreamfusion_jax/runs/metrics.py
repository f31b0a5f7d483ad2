"""Metrics and previews of a run, written to metrics.jsonl, TensorBoard and, on request, wandb.

Distillation has no loss with a meaningful value; worth watching are the size of the residual, the
share of the image that the object covers, and each regularizer. Each line also holds the time spent
so far, over all restarts of the run: `seconds`, and `device_seconds`, which counts each device.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamfusion_jax.runs.wandb_logger import WandbRun
from dreamfusion_jax.runtime.device import peak_memory_bytes
from dreamfusion_jax.runtime.files import AnyPath, atomic_write, copy_folder, naming

FILE = "metrics.jsonl"
_PATIENCE_S = 10.0  # until TensorBoard's file is closed
_MAX_LINE_BYTES = 2**20  # longer lines are not of a run


class ElapsedTime(NamedTuple):
    """Time that a run took, in seconds, and in seconds times devices."""

    seconds: float = 0.0
    device_seconds: float = 0.0


class MetricsWriter:
    """Writes the metrics of a run that starts, or continues, after `first_step` steps.

    The clock starts with the construction. Objects in a bucket cannot grow, so for a run there the
    files are written locally, and `publish` copies them.

    Args:
      devices: the number of devices in use.
      wandb: also gets all metrics and previews.

    Attributes:
      path: the local metrics.jsonl.
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
        # Of all lines, because steps that are done again cost time twice.
        self._before = spent(read_metrics(self.path))
        _drop_lines_after(self.path, first_step)
        self._file = self.path.open("a")
        self._board = _summary_writer(folder / "tensorboard", first_step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Fetches the metrics from the device, writes them, and returns them as floats."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        # JSON knows no NaN.
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        memory = {"peak_memory_bytes": peak_memory_bytes()}
        line = {"step": step, **self._spent()._asdict(), **memory, **numbers}
        with naming(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in finite.items():  # Else the curve has a gap.
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.write(step, finite)
        return values

    def write_preview(self, step: int, image: np.ndarray) -> None:
        """Writes an image [H, W, 3] uint8 beside the curves."""
        self._board.add_image("preview", image, step, dataformats="HWC")
        if self._wandb:
            self._wandb.write_preview(step, image)

    def _spent(self) -> ElapsedTime:
        seconds = time.monotonic() - self._started
        return ElapsedTime(
            round(self._before.seconds + seconds, 3),
            round(self._before.device_seconds + seconds * self._devices, 3),
        )

    def publish(self) -> None:
        """Copies what was written so far to the bucket; does nothing for a local folder."""
        if self._scratch:
            _patiently(self._board.flush)
            copy_folder(self._scratch, self._workdir)

    def close(self) -> None:
        """Closes all files, and copies them to the bucket, if any."""
        _patiently(self._board.close)
        if self._wandb:
            self._wandb.close()
        with naming(self.path):
            self._file.close()
        if self._scratch:
            copy_folder(self._scratch, self._workdir)
            shutil.rmtree(self._scratch)

    def _fetch(self, workdir: AnyPath) -> Path:
        assert self._scratch
        if (workdir / FILE).exists():
            (self._scratch / FILE).write_bytes((workdir / FILE).read_bytes())
        return self._scratch


def _summary_writer(folder: Path, purge_step: int) -> Any:
    """Opens a tensorboardX.SummaryWriter.

    Where torch is installed, tensorboardX imports it, to accept its tensors: two seconds and
    hundreds of megabytes that no run needs. So torch is hidden meanwhile.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)


def _patiently(action: Callable[[], object]) -> None:
    """Lets TensorBoard's writer finish; where the disk is full it would wait for a dead thread."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)


def read_metrics(path: AnyPath, max_lines: int | None = None) -> list[dict[str, float]]:
    """Reads the lines of a metrics.jsonl, if there is one: the finite numbers by name.

    Args:
      max_lines: return at most this many, evenly spaced, with the first and the last.
    """
    lines = list(_own_lines(path)) if path.exists() else []
    if max_lines and len(lines) > max_lines:
        lines = [lines[round(i)] for i in np.linspace(0, len(lines) - 1, max_lines)]
    return [numbers for line in lines if "step" in (numbers := _numbers(line))]


def _numbers(line: bytes) -> dict[str, float]:
    """Parses the finite numbers of a line; none where it is incomplete, as after a crash."""
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
    """Returns the time that a run had taken at its last line; 0 where it is not recorded."""
    last = lines[-1] if lines else {}
    return ElapsedTime(*(last.get(name, 0.0) for name in ElapsedTime._fields))


def _drop_lines_after(path: Path, step: int) -> None:
    """Deletes the lines after the checkpoint from which the run continues."""
    if path.exists():
        lines = [line.rstrip(b"\n") + b"\n" for line in _own_lines(path) if _step(line) <= step]
        atomic_write(path, b"".join(lines))


def _own_lines(path: AnyPath) -> Iterator[bytes]:
    """Yields the lines of a file up to the first one that is too long."""
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(_MAX_LINE_BYTES), b"")
        yield from itertools.takewhile(lambda line: len(line) < _MAX_LINE_BYTES, lines)


def _step(line: bytes) -> float:
    """Returns the step of a line; infinity where it is incomplete."""
    step = _numbers(line).get("step")
    return step if isinstance(step, int) else math.inf
