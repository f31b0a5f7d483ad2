"""The studio's queue: one run at a time, kept on disk, stopped by asking."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.runs import lock
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.webui.jobs import FOLDER, Queue, Waiting

# Stands in for a run: takes the lock, notes when it began, and ends on SIGTERM or when told to.
RUN = """
import pathlib, signal, sys, time
folder = next(pathlib.Path(a.split("=", 1)[1]) for a in sys.argv if a.startswith("--workdir="))
folder.mkdir()
def stop(*_):
    (folder / "stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
(folder / "began").write_text(str(time.monotonic_ns()))
print("step 1/2", flush=True)
while not (folder / "end").exists():
    time.sleep(0.01)
print("Error: it failed.", flush=True)
"""
COMMAND = (sys.executable, "-c", RUN)


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path, COMMAND)
    yield queue
    if queue._thread.is_alive():
        queue.close()


def config_in(folder):
    return config_from_settings("toybox", {"prompt": "a cup", "workdir": str(folder), "steps": 2})


def until(happened):
    end = time.monotonic() + 60.0
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_runs_go_one_after_another_and_errors_are_told(queue, tmp_path):
    assert [queue.add(config_in(tmp_path / name)) for name in "ab"] == ["a", "b"]
    queue.start()
    until((tmp_path / "a" / "began").exists)
    until(lambda: queue.log_tail("a") == ["step 1/2"])
    assert queue.names == ["a", "b"]
    assert queue.current == "a" and queue.waiting == ["b"] and not (tmp_path / "b").exists()
    (tmp_path / "a" / "end").touch()
    until((tmp_path / "b" / "began").exists)
    assert queue.error_of("a") == "it failed." and queue.error_of("b") == ""
    assert queue.current == "b" and queue.waiting == []


def test_a_run_is_stopped_and_a_waiting_one_forgotten(queue, tmp_path):
    for name in "ab":
        queue.add(config_in(tmp_path / name))
    queue.start()
    until(lambda: queue.log_tail("a"))
    assert queue.stop("b") and queue.waiting == []
    assert queue.stop("a") and not queue.stop("c")
    until((tmp_path / "a" / "stopped").exists)
    until(lambda: queue.current == "")
    assert not (tmp_path / "b").exists()


def test_what_waits_outlives_a_killed_studio(queue, tmp_path):
    queue.add(config_in(tmp_path / "a"))
    again = Queue(tmp_path, COMMAND)
    assert again.waiting == ["a"]
    (tmp_path / FOLDER / "queue.json").write_text("[1")
    assert Queue(tmp_path, COMMAND).waiting == []


def test_a_run_that_others_started_keeps_the_queue_waiting(queue, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with lock.locked(other):
        queue.add(config_in(tmp_path / "a"))
        queue.start()
        time.sleep(1.0)
        assert queue.waiting == ["a"]
        with pytest.raises(UserError, match="is at work already"):
            queue.add(config_in(other))
    until((tmp_path / "a" / "began").exists)


def test_the_run_of_a_killed_studio_is_stopped(queue, tmp_path):
    code = "import time\nprint('dreamfusion_jax', flush=True)\ntime.sleep(60)"
    run = subprocess.Popen([sys.executable, "-c", code, "dreamfusion_jax"], stdout=-1)
    run.stdout.readline()
    (tmp_path / "old").mkdir()
    owner = lock._owner().replace(str(os.getpid()), str(run.pid))
    (tmp_path / "old" / lock.LOCK).write_text(f"{owner}\n")
    assert queue.stop("old")
    assert run.wait(30) == -15
    assert not queue.stop("old"), "a process that is gone"


def test_a_run_that_has_no_lock_yet_is_found_by_the_next_studio(queue, tmp_path):
    code = "import time\nprint('dreamfusion_jax', flush=True)\ntime.sleep(60)"
    command = (sys.executable, "-c", code, "dreamfusion_jax")
    killed = Queue(tmp_path, command)
    killed._begin(Waiting("a", []))
    assert queue.current == "" and Queue(tmp_path, COMMAND).current == "a"
    studio = Queue(tmp_path, COMMAND)
    with pytest.raises(UserError, match="is at work already"):
        studio.add(config_in(tmp_path / "a"))
    studio.add(config_in(tmp_path / "b"))
    studio.start()
    time.sleep(1.0)
    assert studio.waiting == ["b"], "one run at a time"
    assert studio.stop("a") and killed._process.wait(30) == -15
    until((tmp_path / "b" / "began").exists)
    studio.close()


def test_folders_outside_the_root_are_refused(queue, tmp_path):
    config = config_in(tmp_path / "a")
    for folder in (tmp_path.parent / "a", tmp_path / "a" / "b", tmp_path / ".." / "a"):
        run = dataclasses.replace(config.run, workdir=str(folder))
        with pytest.raises(UserError, match="is not a folder of"):
            queue.add(dataclasses.replace(config, run=run))
    queue.add(config)
    with pytest.raises(UserError, match="waits already"):
        queue.add(config)
    assert [name for name, _ in json.loads((tmp_path / FOLDER / "queue.json").read_text())] == ["a"]
