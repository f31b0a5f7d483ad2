"""Numbers of a run, to a plain metrics.jsonl and to TensorBoard.

Distillation has no loss whose value means anything; what is worth watching is the size of the
residual, how much of the picture the object covers, and each regulariser.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from dreamfusion_jax.files import AnyPath, copy_folder, write_whole

FILE = "metrics.jsonl"
_LONGEST_LINE = 2**20  # beyond it nothing is ours


class MetricsWriter:
    """Writes the metrics of a run that starts, or goes on, after `first_step` steps.

    Objects in a bucket cannot grow, so for a run there they are written here first, and `publish`
    copies them.
    """

    def __init__(self, workdir: AnyPath, first_step: int) -> None:
        self._workdir = workdir
        self._scratch = None if isinstance(workdir, Path) else Path(tempfile.mkdtemp())
        folder = workdir if isinstance(workdir, Path) else self._fetch(workdir)
        _drop_lines_after(folder / FILE, first_step)
        self._file = (folder / FILE).open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Fetches the metrics from the device, writes them, and returns them as floats."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        # JSON knows no NaN.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):  # A curve has a gap there.
                self._board.add_scalar(name, value, step)
        return values

    def publish(self) -> None:
        """Copies what was written so far to a bucket; here it is there already."""
        if self._scratch:
            self._board.flush()
            copy_folder(self._scratch, self._workdir)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._scratch:
            copy_folder(self._scratch, self._workdir)
            shutil.rmtree(self._scratch)

    def _fetch(self, workdir: AnyPath) -> Path:
        assert self._scratch
        if (workdir / FILE).exists():
            (self._scratch / FILE).write_bytes((workdir / FILE).read_bytes())
        return self._scratch


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
