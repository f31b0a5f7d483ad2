"""Metrics cost a run no import of torch, wherever it is installed."""

import subprocess
import sys

WRITE = """
import sys
from pathlib import Path
from dreamfusion_jax.runs.metrics import MetricsWriter

writer = MetricsWriter(Path(sys.argv[1]), 0)
writer.write(1, {"opacity_mean": 0.5})
writer.close()
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""


def test_writing_metrics_imports_no_torch(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], check=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"opacity_mean" in events.read_bytes()
