import dataclasses
import json
import os
import signal
import struct
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from dreamfusion_jax.runs import loop, metrics
from dreamfusion_jax.runs.checkpoint import Checkpoints, load_run
from dreamfusion_jax.runs.metrics import ElapsedTime, MetricsWriter, read_metrics, spent
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.runtime.errors import RunError, UserError


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))


def interrupt_after(step, monkeypatch):
    """Sends this process a Ctrl-C while it draws its first preview, at `step`."""

    def preview(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((8, 32, 3), np.uint8)

    monkeypatch.setattr(loop, "FIRST_PREVIEW_STEP", step)
    monkeypatch.setattr(loop, "FIRST_PREVIEW_SECONDS", float("inf"))
    monkeypatch.setattr(loop.images, "preview", preview)


def steps_logged(config):
    lines = (Path(config.run.workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def train_in(folder, make_config, make_run):
    config = make_config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, workdir=str(folder)))
    return config, loop.train(config, make_run(config), started=loop.time.monotonic())


def test_an_interrupted_run_ends_bit_identical(
    tmp_path, make_config, make_run, monkeypatch, no_pictures
):
    config, straight = train_in(tmp_path / "straight", make_config, make_run)
    assert steps_logged(config) == list(range(1, 11))
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(loop.Interrupted, match="5"):
            train_in(tmp_path / "stopped", make_config, make_run)
    assert signal.getsignal(signal.SIGINT) is handler, "put back"
    config, resumed = train_in(tmp_path / "stopped", make_config, make_run)
    assert steps_logged(config) == list(range(1, 11))
    assert int(resumed.step) == 10
    chex.assert_trees_all_equal(straight, resumed)
    store_config(config)
    chex.assert_trees_all_equal(load_run(tmp_path / "stopped").state, resumed)


def test_out_of_memory_in_a_step_keeps_what_was_saved(
    tmp_path, make_config, make_run, count_step, no_pictures
):
    config = make_config(views_per_device=4)
    keep = dataclasses.replace(config.run, workdir=str(tmp_path / "run"), checkpoint_every=2)
    config = dataclasses.replace(config, run=keep)
    run = make_run(config)

    def step(device, state, *others):
        if int(state.step) == 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return count_step(device, state, *others)

    with pytest.raises(RunError, match="Memory .* optimized .*--views_per_device=2,"):
        loop.train(config, run._replace(step=step), started=loop.time.monotonic())
    store_config(config)
    assert int(load_run(tmp_path / "run").state.step) == 2


def test_metrics_after_the_checkpoint_are_deleted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    writer = MetricsWriter(tmp_path, first_step=2)
    assert writer.write(3, {"x": jax.numpy.float32(0.5)}) == {"x": 0.5}
    writer.close()
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[-1]["x"] == 0.5


def tensorboard_tags(workdir):
    """What each event of a run in TensorBoard's files is called, by its step and kind."""
    tags = set()
    for path in (workdir / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # a record: its length, a checksum, the event, a checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = event_pb2.Event.FromString(data[12 : 12 + length]), data[16 + length :]
            tags |= {(event.step, v.WhichOneof("value"), v.tag) for v in event.summary.value}
    return tags


def test_tensorboard_has_curves_and_previews(tmp_path):
    writer = MetricsWriter(tmp_path, first_step=0)
    writer.write(3, {"x": jax.numpy.float32(0.5), "y": jax.numpy.float32("nan")})
    writer.write_preview(3, np.zeros((8, 32, 3), np.uint8))
    writer.close()
    assert tensorboard_tags(tmp_path) == {(3, "simple_value", "x"), (3, "image", "preview")}


def test_elapsed_time_adds_up_over_restarts_and_devices(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    for first, devices, expected in (
        (0, 1, ElapsedTime(5.0, 5.0)),
        (1, 8, ElapsedTime(10.0, 45.0)),
    ):
        writer = MetricsWriter(tmp_path, first, devices)
        for step in (1, 2):
            clock[0] += 2.5
            writer.write(first + step, {})
        writer.close()
        assert spent(read_metrics(writer.path)) == expected
    # The second session began after step 1, so that it did step 2 again.
    assert [line["step"] for line in read_metrics(writer.path)] == [1, 2, 3]
    assert read_metrics(writer.path)[0]["seconds"] == 2.5


def test_metrics_are_subsampled_and_foreign_lines_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == [] and spent([]) == ElapsedTime(0.0, 0.0)
    lines = [json.dumps({"step": step, "x": None, "y": "z"}) for step in range(1001)]
    path.write_text("\n".join(lines))
    assert read_metrics(path, max_lines=3) == [{"step": 0}, {"step": 500}, {"step": 1000}]
    path.write_text('{"step": 1, "x": 1e999}\n[1]\n7\n{"x": 1}\n' + "[" * 100000 + '\n{"step"')
    assert read_metrics(path) == [{"step": 1}]


def test_a_broken_checkpoint_is_named(make_config, make_run, tmp_path):
    config = make_config()
    run = make_run(config)
    state = loop.init_state(run.scene, run.optimizer, 0)._replace(step=jax.numpy.int32(3))
    checkpoints = Checkpoints(tmp_path, jax.local_devices()[:1])
    checkpoints.save(state)
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(b"broken")
    checkpoints = Checkpoints(tmp_path, jax.local_devices()[:1])
    with pytest.raises(UserError, match="No checkpoint in .* can be read"):
        checkpoints.restore(state)
    checkpoints.close()


def test_more_devices_than_there_are_is_refused():
    assert loop.choose_devices(0) == jax.local_devices()
    with pytest.raises(UserError, match="--devices=99"):
        loop.choose_devices(99)
