"""Numbers of a run, to a plain metrics.jsonl and to TensorBoard.

Distillation has no loss whose value means anything; what is worth watching is the size of the
residual, how much of the picture the object covers, and each regulariser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter


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
        self._file.write(json.dumps({"step": step, **values}) + "\n")
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
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # A line cut short when the run was killed.
    path.write_text("".join(kept))
