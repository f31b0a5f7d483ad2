"""Numbers of a run, to a plain metrics.jsonl and to TensorBoard.

Distillation has no loss whose value means anything; what is worth watching is the size of the
residual, how much of the picture the object covers, and each regulariser.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from dreamfusion_jax.files import write_whole

_LONGEST_LINE = 2**20  # beyond it nothing is ours


class MetricsWriter:
    """Writes the metrics of a run that starts, or goes on, after `first_step` steps."""

    def __init__(self, workdir: Path, first_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        _drop_lines_after(self._path, first_step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Fetches the metrics from the device, writes them, and returns them as floats."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        # JSON knows no NaN.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        return values

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _drop_lines_after(path: Path, step: int) -> None:
    """Forgets what a run wrote after the checkpoint it goes on from; it will be written anew."""
    if not path.exists():
        return
    with path.open("rb") as old:
        lines = iter(lambda: old.readline(_LONGEST_LINE), b"")
        ours = itertools.takewhile(lambda line: len(line) < _LONGEST_LINE, lines)
        kept = [line.rstrip(b"\n") + b"\n" for line in ours if _step(line) <= step]
    write_whole(path, b"".join(kept))


def _step(line: bytes) -> float:
    """The step that a line tells of; infinity where it was cut short, as by the end of a run."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
