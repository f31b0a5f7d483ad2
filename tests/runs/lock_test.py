"""Two jobs never work in one folder, and a dead job locks nobody out."""

import multiprocessing
import threading
import time

import pytest

from dreamfusion_jax.runs import lock
from dreamfusion_jax.runtime.errors import UserError

MESSAGE = r"Another job \(process \d+ on .+\) is at work in .*run"


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_a_second_job_is_refused_until_the_first_is_done(workdir):
    with lock.locked(workdir):
        with pytest.raises(UserError, match=MESSAGE):
            with lock.locked(workdir):
                pytest.fail("two jobs in one folder")
        assert lock.is_held(workdir), "and has its lock still"
    assert not (workdir / lock.LOCK).exists(), "removed"
    with lock.locked(workdir):
        pass


def test_a_file_removed_before_it_is_locked_is_not_a_lock(workdir, monkeypatch):
    """The second job opens the first one's file, which is removed before the second locks it."""
    flock, first = lock.fcntl.flock, lock.locked(workdir)
    first.__enter__()

    def late(file, operation):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        first.__exit__(None, None, None)
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with lock.locked(workdir):
        with pytest.raises(UserError, match=MESSAGE):
            with lock.locked(workdir):
                pytest.fail("two jobs in one folder")


def test_a_job_removes_no_lock_of_another_job(workdir):
    with lock.locked(workdir):
        workdir.rename(workdir.with_name("moved"))
        workdir.mkdir()
        with lock.locked(workdir):
            (workdir / lock.LOCK).rename(workdir / "other")
            (workdir / "other").rename(workdir / lock.LOCK)
            assert lock.is_held(workdir)
        assert not (workdir / lock.LOCK).exists()
    assert (workdir.with_name("moved") / lock.LOCK).exists(), "not this path's any more"


def hold(workdir, is_locked):
    with lock.locked(workdir):
        is_locked.set()
        time.sleep(600)


def test_a_killed_job_leaves_no_lock_behind(workdir):
    spawn = multiprocessing.get_context("spawn")
    is_locked = spawn.Event()
    job = spawn.Process(target=hold, args=(workdir, is_locked))
    job.start()
    assert is_locked.wait(60)
    with pytest.raises(UserError, match=f"process {job.pid} "):
        with lock.locked(workdir):
            pytest.fail("two jobs in one folder")
    assert lock.is_held(workdir)
    job.kill()
    job.join()
    assert (workdir / lock.LOCK).exists() and not lock.is_held(workdir)
    with lock.locked(workdir):
        pass


def heartbeat(workdir, beat=0.05, silent=1.0):
    return lock.held_by_heartbeat(workdir, beat, silent)


def test_a_heartbeat_keeps_others_out_and_silence_does_not(workdir, capsys):
    with heartbeat(workdir):
        with pytest.raises(UserError, match=MESSAGE):
            with heartbeat(workdir):
                pytest.fail("two jobs in one folder")
    assert not (workdir / lock.LOCK).exists(), "given back"
    assert "waiting" in capsys.readouterr().err

    (workdir / lock.LOCK).write_text("process 7 on elsewhere, abc\n12\n")
    before = time.monotonic()
    with heartbeat(workdir):
        assert time.monotonic() - before > 1.0, "it had its time to be heard"


def test_a_heartbeat_lock_that_is_removed_is_free(workdir):
    path = workdir / lock.LOCK
    path.write_text("process 7 on elsewhere, abc\n12\n")
    threading.Timer(0.3, path.unlink).start()
    with heartbeat(workdir, silent=30.0):
        pass


def test_of_two_jobs_at_once_one_gets_the_heartbeat_lock(workdir):
    inside, refused = [], []
    start = threading.Barrier(2)

    def come():
        start.wait()
        try:
            with heartbeat(workdir, beat=0.5, silent=2.0):
                inside.append(1)
                time.sleep(4.0)
        except UserError:
            refused.append(1)

    jobs = [threading.Thread(target=come) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (len(inside), len(refused)) == (1, 1)
