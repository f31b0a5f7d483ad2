"""Standard streams that are closed or gone, and signals before a command has begun."""

import os
import signal
import subprocess
import sys

import pytest

from dreamfusion_jax.runtime import process
from dreamfusion_jax.runtime.progress import Progress

BEGIN = "import os, sys; from dreamfusion_jax.runtime import process; process.begin(); "


def run(script, redirections="", **options):
    command = [f'"{sys.executable}" -c "$SCRIPT" {redirections}']
    environment = {**os.environ, "SCRIPT": BEGIN + script}
    return subprocess.run(["bash", "-c", *command], env=environment, **options)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    lock = tmp_path / "lock"
    script = f"lock = open({str(lock)!r}, 'w'); os.write(2, b'message'); print(1, file=sys.stderr)"
    assert run(script, "<&- >&- 2>&-").returncode == 0
    assert lock.read_text() == ""


@pytest.mark.parametrize("redirection", ["> /dev/full 2> /dev/full", "2>&1 | head -c 1"])
def test_streams_that_take_nothing_stop_no_command(redirection, tmp_path):
    done = tmp_path / "done"
    script = (
        "[print(1000 * 'line', file=f, flush=True) for f in 50 * [sys.stdout, sys.stderr]];"
        f" open({str(done)!r}, 'w')"
    )
    run(script, redirection, stdout=subprocess.PIPE)
    assert done.exists()


@pytest.mark.parametrize("closed", [False, True], ids=["None", "closed"])
def test_progress_needs_no_stream(closed, monkeypatch):
    stream = open(os.devnull, "w") if closed else None  # noqa: SIM115
    if stream:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(2, "rendering", "tile") as bar:
        bar.update()
        bar.write("a line")
        bar.update()


def test_streams_of_the_caller_come_back(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with process.usable_streams():
        print("lost")
        assert process.is_usable(sys.stdout)
    assert sys.stdout is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_is_130_and_one_line(number):
    script = f"os.kill(os.getpid(), {int(number)}); import time; time.sleep(9)"
    result = run(script, capture_output=True, text=True)
    assert result.returncode == 130
    assert result.stderr.split("\n") == ["", "Stopped before anything was done.", ""]


def test_a_hang_up_that_is_ignored_stays_ignored():
    result = run("os.kill(os.getpid(), 1); print(1)", capture_output=True, text=True)
    assert result.returncode == 130
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    result = run("os.kill(os.getpid(), 1); print(1)", capture_output=True, text=True, **ignored)
    assert (result.returncode, result.stdout) == (0, "1\n")


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["-m", "x"], ["python", "-m", "dreamfusion_jax.main", "x"], True),
        (["-m"], ["python", "-W", "ignore", "-m", "dreamfusion_jax"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["tool.py"], ["python", "-m", "dreamfusion_jax.main"], False),
        ([""], ["python"], False),
    ],
)
def test_a_command_is_told_from_an_import(argv, orig_argv, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert process.started_as_module() == expected


LOST_IN_A_CALLBACK = """
import gc, os, signal, sys, time
from dreamfusion_jax.runtime import process
process.raise_on_signals()
def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
gc.callbacks.append(callback)
try:
    gc.collect()
    time.sleep(20)
except KeyboardInterrupt:
    sys.exit(process.EXIT_INTERRUPTED)
"""


def test_an_interruption_lost_in_a_callback_comes_again():
    """What the garbage collector calls cannot raise: Python prints the error and goes on."""
    result = subprocess.run([sys.executable, "-c", LOST_IN_A_CALLBACK], capture_output=True)
    assert (result.returncode, result.stderr) == (process.EXIT_INTERRUPTED, b"")
