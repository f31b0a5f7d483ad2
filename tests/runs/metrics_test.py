"""Metrics cost a run no import of torch, and a full disk ends them with the file's name."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreamfusion_jax.runs import metrics

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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_with_the_name_of_the_metrics(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    writer._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as error:
        writer.write(1, {"opacity_mean": 0.5})
    assert error.value.filename == str(tmp_path / metrics.FILE)


def test_a_writer_whose_thread_died_keeps_nobody_waiting(tmp_path, monkeypatch):
    """TensorBoard's, where the disk is full."""
    monkeypatch.setattr(metrics, "_PATIENCE_S", 0.2)
    writer = metrics.MetricsWriter(tmp_path, 0)
    monkeypatch.setattr(writer._board, "close", threading.Event().wait)
    writer.close()
