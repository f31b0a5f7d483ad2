"""Damaged, partial and unwritable checkpoints: intact older ones are used and kept."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runtime import png
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.training.step import replicate


@pytest.fixture
def states(make_config, make_run):
    """A state at step n, all of whose numbers are n."""
    run = make_run(make_config())
    start = loop.init_state(run.scene, run.optimizer, 0)

    def make(step):
        state = jax.tree.map(lambda x: jnp.full_like(x, step), start)
        return replicate(state, jax.local_devices()[:1])

    return make


def save(folder: Path, *states):
    checkpoints = Checkpoints(folder, jax.local_devices()[:1])
    try:
        for state in states:
            checkpoints.save(state)
    finally:
        checkpoints.close()


def restore(folder: Path, like):
    checkpoints = Checkpoints(folder, jax.local_devices()[:1])
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file())


def largest(folder: Path, step: int) -> Path:
    return max(files_of(folder, step), key=lambda path: path.stat().st_size)


def cut(folder):
    path = largest(folder, 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(folder):
    path = largest(folder, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty_every_file(folder):
    for path in files_of(folder, 2):
        path.write_bytes(b"")


def lose_the_largest_file(folder):
    largest(folder, 2).unlink()


def lose_the_digest(folder):
    shutil.rmtree(folder / "checkpoints" / "2" / "digest")


def exchange_the_state_for_another(folder):
    """The arrays are readable, but not those of the digest."""
    checkpoints_folder = folder / "checkpoints"
    shutil.rmtree(checkpoints_folder / "2" / "state")
    shutil.copytree(checkpoints_folder / "1" / "state", checkpoints_folder / "2" / "state")


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip_one_bit,
        empty_every_file,
        lose_the_largest_file,
        lose_the_digest,
        exchange_the_state_for_another,
    ],
    ids=lambda damage: damage.__name__,
)
def test_the_checkpoint_before_a_damaged_one_is_used(damage, states, tmp_path, capsys):
    save(tmp_path, states(1), states(2))
    chex.assert_trees_all_equal(restore(tmp_path, states(0)), jax.device_get(states(2)))
    damage(tmp_path)
    chex.assert_trees_all_equal(restore(tmp_path, states(0)), jax.device_get(states(1)))
    assert "Warning: the checkpoint of step 2" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "damaged_checkpoints").iterdir()] == ["2_0"]
    save(tmp_path, states(2))  # written anew
    chex.assert_trees_all_equal(restore(tmp_path, states(0)), jax.device_get(states(2)))


def test_where_none_is_whole_nothing_is_thrown_away(states, tmp_path):
    save(tmp_path, states(2))
    before = {path: path.read_bytes() for path in files_of(tmp_path, 2)[1:]}
    flip_one_bit(tmp_path)
    with pytest.raises(UserError, match="No checkpoint in .* can be read .*all of it is kept"):
        restore(tmp_path, states(0))
    assert len([p for p in before if p.exists()]) == len(before)


def test_a_partial_checkpoint_of_a_killed_job_is_removed(states, tmp_path):
    save(tmp_path, states(1))
    checkpoints_folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoints_folder / "1", checkpoints_folder / "2.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path, jax.local_devices()[:1])
    chex.assert_trees_all_equal(checkpoints.restore(states(0)), jax.device_get(states(1)))
    checkpoints.save(states(2))
    checkpoints.close()
    assert sorted(path.name for path in checkpoints_folder.iterdir()) == ["1", "2"], "cleared away"


def test_an_older_state_than_the_newest_is_refused(states, tmp_path):
    save(tmp_path, states(2), states(2))
    with pytest.raises(UserError, match=f"{tmp_path} already holds step 2, .* newer than step 1"):
        save(tmp_path, states(1))
    chex.assert_trees_all_equal(restore(tmp_path, states(0)), jax.device_get(states(2)))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 640 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_reported_and_saved_states_are_kept(states, small_disk):
    save(small_disk, states(1))
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(max(free - 8192, 0)))
    with pytest.raises(RunError, match="could not be written .*the disk is full.*is kept"):
        save(small_disk, states(2))
    (small_disk / "ballast").unlink()
    chex.assert_trees_all_equal(restore(small_disk, states(0)), jax.device_get(states(1)))
    save(small_disk, states(2))
    chex.assert_trees_all_equal(restore(small_disk, states(0)), jax.device_get(states(2)))


def test_a_full_disk_for_metrics_or_images_is_one_sentence(
    make_config, make_run, tmp_path, monkeypatch
):
    """The message is that of `cli.not_writable`; the last checkpoint is kept."""
    from dreamfusion_jax.config import cli

    config = make_config()
    run = make_run(config)
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(png, "atomic_write", full)
    with pytest.raises(OSError) as raised:
        loop.train(config, run, started=loop.time.monotonic())
    sentence = str(cli.not_writable(raised.value))
    assert "preview" in sentence or "step_" in sentence
    assert "No space left on device" in sentence and "is kept" in sentence
