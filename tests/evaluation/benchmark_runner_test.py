"""The process that makes the assets: its arguments, its exit codes, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dreamfusion_jax.evaluation import benchmark_runner
from dreamfusion_jax.runs.outputs_record import OutputsRecord, write_record
from dreamfusion_jax.runtime.errors import RunError, UserError

PROMPTS = ["a red chair", "a blue car"]


def test_one_process_makes_all_assets_of_a_seed(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(benchmark_runner, "_run", lambda command: commands.append(command) or 0)
    first = benchmark_runner.make_assets(PROMPTS, tmp_path, 0, ["--steps=3"])
    second = benchmark_runner.make_assets(PROMPTS, tmp_path, 7)
    assert first == [tmp_path / "a-red-chair", tmp_path / "a-blue-car"]
    assert second == [tmp_path / "seed_7" / name for name in ("a-red-chair", "a-blue-car")]
    for command, root, rest in zip(
        commands, (tmp_path, tmp_path / "seed_7"), (["--steps=3"], []), strict=True
    ):
        assert command[1:3] == ["-m", "dreamfusion_jax.main"]
        prompts_file = root / "prompts_made.txt"
        assert command[3] == f"--prompts_file={prompts_file}"
        assert prompts_file.read_text().splitlines() == PROMPTS
        seed = 0 if root == tmp_path else 7
        assert command[4:] == [f"--workdir={root}", f"--seed={seed}", *rest]


@pytest.mark.parametrize("prompt", ["# a chair", "a\nb", "a red chair"])
def test_what_a_file_of_prompts_cannot_hold_is_refused(prompt, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_runner, "_run", lambda command: 0)
    with pytest.raises(UserError, match="one line|once"):
        benchmark_runner.make_assets([*PROMPTS, prompt], tmp_path)


@pytest.mark.parametrize(
    ("code", "raised"),
    [(1, RunError), (2, UserError), (-9, RunError), (130, KeyboardInterrupt)],
)
def test_what_is_kept_is_told_however_the_process_ended(
    code, raised, tmp_path, monkeypatch, capsys
):
    finished = tmp_path / "a-blue-car"
    finished.mkdir()
    write_record(finished, OutputsRecord(2))
    monkeypatch.setattr(benchmark_runner, "_run", lambda command: code)
    with pytest.raises(raised) as error:
        benchmark_runner.make_assets(PROMPTS, tmp_path)
    assert "1 of 2 assets" in str(error.value) + capsys.readouterr().err
    assert error.type is raised


def test_flags_of_the_runs_are_read_as_a_shell_reads_them():
    arguments = benchmark_runner.check_run_flags(
        "--steps=3 --negative_prompt='a b'", PROMPTS, [0, 1]
    )
    assert arguments == ["--steps=3", "--negative_prompt=a b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--steps=0", "--steps must be at least 1"),
        ("--steps=many", "--run_flags=.*steps"),
        ("--no_such=1", "--run_flags=.*no_such"),
        ("steps", "steps is not a flag"),
        ("--steps='3", "--run_flags=.*quotation"),
        ("--seed=1", "must not contain --seed"),
        ("--prompt=x", "must not contain --prompt"),
        ("--workdir=x", "must not contain --workdir"),
        ("--flagfile=/no/such", "--run_flags="),
    ],
)
def test_bad_run_flags_are_refused_before_any_run(text, message):
    with pytest.raises(UserError, match=message):
        benchmark_runner.check_run_flags(text, PROMPTS, [0])


def test_a_seed_that_no_run_would_take_is_refused():
    with pytest.raises(UserError, match="--seed must be at least"):
        benchmark_runner.check_run_flags("", PROMPTS, [0, -1])


PARENT = """
import sys
from dreamfusion_jax.evaluation import benchmark_runner
sys.exit(benchmark_runner._run([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""
CHILD = """
import pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
pathlib.Path(sys.argv[1]).touch()
while not heard:
    time.sleep(0.01)
time.sleep(0.2)  # saving takes its time
sys.exit(100 + len(heard))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_forwarded_once_and_awaited(number, tmp_path):
    started = tmp_path / "started"
    command = [sys.executable, "-c", PARENT, CHILD, str(started)]
    with subprocess.Popen(command, start_new_session=True) as parent:
        stop = threading.Timer(60, parent.kill)
        stop.start()
        while not started.exists() and parent.poll() is None:
            time.sleep(0.02)
        os.killpg(parent.pid, number)
        assert parent.wait() == 101
        stop.cancel()
    assert Path(started).exists()
