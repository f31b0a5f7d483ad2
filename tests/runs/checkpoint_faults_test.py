"""Only bytes prove damage: a checkpoint that cannot be read is left, or looked for again."""

import errno
import os
import shutil
import threading

import chex
import jax
import numpy as np
import pytest

from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.checkpoint_faults import DamagedError, UnreadableError, fault
from dreamfusion_jax.runtime.errors import RunError, UserError
from tests.runs.checkpoint_test import files_of, restore, save, states  # noqa: F401, a fixture

IO_ERROR = OSError(errno.EIO, os.strerror(errno.EIO))
# As TensorStore words it.
STORE_ERROR = ValueError("UNKNOWN: Error reading d/0: [OS error 5: EIO Input/output error]")


def fail_reads(monkeypatch, error, times):
    """Makes the first reads of a state fail."""
    left, make = [error] * times, Checkpoints.__init__

    def init(self, *args):
        make(self, *args)
        read = self._reader.restore

        def restore(*args, **kwargs):
            if left:
                raise left.pop()
            return read(*args, **kwargs)

        self._reader.restore = restore

    monkeypatch.setattr(Checkpoints, "__init__", init)


@pytest.mark.parametrize("error", [IO_ERROR, STORE_ERROR, MemoryError("no memory")], ids=str)
def test_a_failing_disk_sets_nothing_aside(error, states, tmp_path, monkeypatch):  # noqa: F811
    save(tmp_path, states(1), states(2))
    before = {path: path.read_bytes() for path in files_of(tmp_path, 2)}
    fail_reads(monkeypatch, error, 99)
    with pytest.raises(RunError, match="checkpoints/2 cannot be read .* left as it is"):
        restore(tmp_path, states(0))
    assert {path: path.read_bytes() for path in files_of(tmp_path, 2)} == before
    assert not (tmp_path / "damaged_checkpoints").exists()


@pytest.mark.parametrize("error", [IO_ERROR, STORE_ERROR], ids=str)
def test_one_failed_read_is_repeated(error, states, tmp_path, monkeypatch, capsys):  # noqa: F811
    save(tmp_path, states(1), states(2))
    fail_reads(monkeypatch, error, 1)
    chex.assert_trees_all_equal(restore(tmp_path, states(0)), jax.device_get(states(2)))
    assert not capsys.readouterr().err


def test_arrays_of_another_type_are_no_damage(states, tmp_path):  # noqa: F811
    """As where JAX computes in 64 bits, or config.json is another run's."""
    save(tmp_path, states(1), states(2))
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(states(0)))
    with pytest.raises(RunError, match="int32 .*, not float64 .*left as it is"):
        restore(tmp_path, wide)
    other = states(0)._replace(params={**states(0).params, "more": np.zeros(3)})
    with pytest.raises(RunError, match="it has no .*more"):
        restore(tmp_path, other)
    assert not (tmp_path / "damaged_checkpoints").exists()


def test_a_step_that_is_gone_is_looked_for_again(states, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A reader beside a run: the step it chose is deleted, a newer one is there."""
    save(tmp_path, states(1), states(2))
    shutil.copytree(tmp_path, tmp_path / "newer")
    save(tmp_path / "newer", states(3))
    checkpoints = Checkpoints(tmp_path)
    read, folder = checkpoints.restore_step, tmp_path / "checkpoints"

    def restore_step(step, like):
        if step == 2:
            shutil.copytree(tmp_path / "newer" / "checkpoints" / "3", folder / "3")
            shutil.rmtree(folder / "1")
            shutil.rmtree(folder / "2")
        return read(step, like)

    monkeypatch.setattr(checkpoints, "restore_step", restore_step)
    chex.assert_trees_all_equal(checkpoints.restore(states(0)), jax.device_get(states(3)))
    checkpoints.close()
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_reading_beside_a_run_that_writes_every_step(states, tmp_path, capsys):  # noqa: F811
    save(tmp_path, states(1))
    done = threading.Event()

    def write():
        checkpoints = Checkpoints(tmp_path, jax.local_devices()[:1])
        for step in range(2, 100):
            checkpoints.save(states(step))
        checkpoints.close()
        done.set()

    writer, reads = threading.Thread(target=write), 0
    writer.start()
    while not done.is_set():
        checkpoints = Checkpoints(tmp_path)
        state = checkpoints.restore(states(0))
        assert state.step == state.opt_state[0].count
        checkpoints.close()
        reads += 1
    writer.join()
    assert reads > 20 and "damaged" not in capsys.readouterr().err


def test_no_message_advises_to_delete(states, tmp_path):  # noqa: F811
    save(tmp_path, states(2))
    for path in files_of(tmp_path, 2):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="all of it is kept: choose another --workdir") as raised:
        restore(tmp_path, states(0))
    assert "delete" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("DATA_LOSS: wrong CRC32C"), DamagedError),
        (FileNotFoundError("digest not found"), DamagedError),
        (KeyError("key_type"), DamagedError),
        (ValueError("UNAVAILABLE: HTTP 503"), UnreadableError),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), UnreadableError),
        (RuntimeError("can't start new thread"), UnreadableError),
    ],
    ids=str,
)
def test_what_an_error_means(error, kind, tmp_path):
    assert isinstance(fault(tmp_path, error, ""), kind)
