"""Jobs of several real processes on the loopback, with two fake devices each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import chex
import pytest

from dreamfusion_jax.runs import distributed, outputs
from dreamfusion_jax.runs.checkpoint import load_run
from dreamfusion_jax.runtime.errors import PriorError, RunError, UserError

STEPS = 60
SETTINGS = (
    *("--prompt=a red chair", "--preview_size=8", "--checkpoint_every=10", "--log_every=1"),
    "--peer_timeout=10",
)
# A flat image compiles faster.
FLAT = ("--field=image", "--image_size=8", f"--steps={STEPS}")
SCENE = (
    *("--steps=6", "--width=8", "--depth=1", "--proposal_samples=0", "--fine_samples=4"),
    *("--sheet_size=8", "--turntable_size=8", "--turntable_frames=3", "--mesh_resolution=12"),
    "--texture_size=64",
)
PATIENCE = 240.0  # seconds, on a busy machine


class Job(NamedTuple):
    """Processes that were started together."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    def wait(self) -> list[int]:
        return [process.wait(PATIENCE) for process in self.processes]

    def output(self, index: int) -> str:
        return self.logs[index].read_text(errors="replace")


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_prior):
    """Starts a job: work folder, number of processes, devices of each, more flags -> Job."""
    compiled = tmp_path_factory.mktemp("compiled_jobs")
    running = []

    def begin(workdir: Path, count: int, devices: int = 2, *extra: str) -> Job:
        logs = tmp_path_factory.mktemp("logs")
        job = Job([], [logs / str(index) for index in range(count)])
        port = free_port()
        for index, log in enumerate(job.logs):
            command = [sys.executable, "-m", "dreamfusion_jax.main", *SETTINGS]
            command += [f"--workdir={workdir}", f"--prior={tiny_prior}", *extra]
            command += [f"--compilation_cache={compiled}"]
            if count > 1:
                command += [f"--coordinator=localhost:{port}", f"--processes={count}"]
                command += [f"--process_index={index}"]
            host_devices = f"--xla_force_host_platform_device_count={devices}"
            xla_flags = f"{os.environ['XLA_FLAGS']} {host_devices}"
            environment = {**os.environ, "XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"}
            with log.open("wb") as out:
                job.processes.append(
                    subprocess.Popen(command, stdout=out, stderr=out, env=environment)
                )
        running.extend(job.processes)
        return job

    yield begin
    for process in running:
        process.kill()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """The work folder and the job of a finished run of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    job = start(workdir, 2, 2, *FLAT)
    assert job.wait() == [0, 0], job.output(0) + job.output(1)
    return workdir, job


def steps_logged(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]


def test_outputs_are_written_once(undisturbed):
    workdir, job = undisturbed
    assert steps_logged(workdir) == list(range(1, STEPS + 1))
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert "picture.png" in job.output(0) and f"{STEPS}/{STEPS}" in job.output(0)
    assert "picture.png" not in job.output(1) and "step" not in job.output(1)


@pytest.mark.slow
def test_two_processes_make_the_same_image_as_one(start, undisturbed, tmp_path):
    job = start(tmp_path / "run", 1, 4, *FLAT)
    assert job.wait() == [0], job.output(0)
    assert_same_end(tmp_path / "run", undisturbed[0], STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_make_the_same_scene_as_one(count, start, tmp_path):
    job = start(tmp_path / "many", count, 2, *SCENE)
    assert job.wait() == [0] * count, job.output(0)
    job = start(tmp_path / "one", 1, 2 * count, *SCENE)
    assert job.wait() == [0], job.output(0)
    assert_same_end(tmp_path / "one", tmp_path / "many", 6)
    for name in outputs.SCENE_FILES:
        assert (tmp_path / "many" / name).stat().st_size > 0, name


def assert_same_end(one: Path, many: Path, steps: int) -> None:
    ends = [load_run(workdir).state for workdir in (one, many)]
    assert [int(state.step) for state in ends] == [steps, steps]
    chex.assert_trees_all_close(ends[0].params, ends[1].params, rtol=0, atol=1e-5)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_and_the_job_resumes(victim, start, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    job = start(workdir, 2, 2, *FLAT)
    wait_until(lambda: any(p.name.isdigit() for p in workdir.glob("checkpoints/*")))
    job.processes[victim].kill()
    killed = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - killed < 60.0
    assert codes[victim] == -signal.SIGKILL
    # 1 where an exchange failed; JAX aborts a process that only waits for a silent one.
    assert codes[1 - victim] in (1, -signal.SIGABRT)
    wait_until(lambda: "Another process of this job has died" in job.output(1 - victim))
    assert not (workdir / "outputs.json").exists()

    job = start(workdir, 2, 2, *FLAT)
    assert job.wait() == [0, 0], job.output(0) + job.output(1)
    assert "Continuing in" in job.output(0)
    assert steps_logged(workdir) == list(range(1, STEPS + 1))
    chex.assert_trees_all_equal(load_run(workdir).state, load_run(undisturbed[0]).state)


def test_sigterm_to_one_stops_and_saves_them_all(start, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    job = start(workdir, 2, 2, *FLAT, "--steps=100000", "--checkpoint_every=100000")
    wait_until(lambda: (workdir / "metrics.jsonl").exists() and len(steps_logged(workdir)) > 3)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [130, 130], job.output(0) + job.output(1)
    (saved,) = (workdir / "checkpoints").iterdir()
    assert 3 < int(saved.name) < 100_000 and f"after step {saved.name}" in job.output(0)


def test_bad_input_ends_every_process_with_the_same_message(start, undisturbed):
    job = start(undisturbed[0], 2, 2, *FLAT, "--width=9")
    assert job.wait() == [2, 2]
    for index in range(2):
        assert "holds a run with other settings (--width=64, not 9)" in job.output(index)


def wait_until(happened) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


class WandbError(RunError):
    """A class that the other processes may not know."""


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (UserError("--width is wrong."), UserError, r"^--width is wrong\.$"),
        (PriorError("unet is torn."), PriorError, r"^unet is torn\.$"),
        (WandbError("no login."), RunError, r"^no login\.$"),
        (KeyError("x"), RunError, r"^The first process failed: KeyError\('x'\)$"),
        (UserError(10**5 * "\U0001f600"), UserError, "^\U0001f600{4000}$"),
    ],
    ids=["UserError", "PriorError", "subclass", "KeyError", "long"],
)
def test_an_error_of_process_0_reaches_the_others_as_it_is(error, kind, message, monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "is_single_process", lambda: False)
    exchange = distributed.multihost_utils
    monkeypatch.setattr(exchange, "broadcast_one_to_all", lambda data: sent.append(data) or data)
    with pytest.raises(type(error)):
        distributed.run_on_primary(lambda: fail(error))
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    monkeypatch.setattr(exchange, "broadcast_one_to_all", lambda _: sent.pop())
    with pytest.raises(kind, match=message) as raised:
        distributed.run_on_primary(lambda: pytest.fail("only process 0 runs it"))
    assert type(raised.value) is kind and raised.value.exit_code == kind.exit_code
    assert "lost file" in str(raised.value.__cause__)


def fail(error):
    raise error from OSError("a lost file")
