import dataclasses
import json
import os
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from dreamfusion_jax.errors import UserError
from dreamfusion_jax.training import loop
from dreamfusion_jax.training.checkpoint import Checkpoints, load_run
from dreamfusion_jax.training.workdir import store_config


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(loop.render, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))


def interrupt_after(step, monkeypatch):
    """Sends this process a Ctrl-C while it draws its first preview, at `step`."""

    def preview(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((8, 32, 3), np.uint8)

    monkeypatch.setattr(loop, "FIRST_PREVIEW_STEP", step)
    monkeypatch.setattr(loop, "FIRST_PREVIEW_SECONDS", float("inf"))
    monkeypatch.setattr(loop.render, "preview", preview)


def steps_logged(config):
    lines = (Path(config.run.workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def train_in(folder, make_config, make_run):
    config = make_config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, workdir=str(folder)))
    return config, loop.train(config, make_run(config), started=loop.time.monotonic())


def test_ten_steps_equal_five_an_interruption_and_five_more_to_the_bit(
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


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    writer = loop.MetricsWriter(tmp_path, first_step=2)
    assert writer.write(3, {"x": jax.numpy.float32(0.5)}) == {"x": 0.5}
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "x": 0.5},
    ]


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
