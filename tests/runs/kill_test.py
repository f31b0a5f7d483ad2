"""Runs killed or interrupted at random moments lose nothing that was saved."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from dreamfusion_jax.runs.checkpoint import load_run

STEPS = 200


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_prior):
    """A run that takes seconds: a flat image of 8 x 8 pixels. Work folder -> its command."""
    compiled = tmp_path_factory.mktemp("compiled")
    settings = (
        *("--prompt=a red chair", "--field=image", "--image_size=8", f"--steps={STEPS}"),
        *("--checkpoint_every=5", "--log_every=10", "--preview_every=50", "--preview_size=8"),
        *(f"--prior={tiny_prior}", f"--compilation_cache={compiled}"),
    )
    return lambda workdir: [
        *(sys.executable, "-m", "dreamfusion_jax.main", *settings, f"--workdir={workdir}")
    ]


def start(command: list[str], log: Path) -> subprocess.Popen:
    with log.open("wb") as out:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment)


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_identical(count, command, tmp_path):
    log = tmp_path / "log"
    before = time.monotonic()
    assert start(command(tmp_path / "whole"), log).wait() == 0, log.read_text()
    seconds = time.monotonic() - before
    whole = load_run(tmp_path / "whole").state
    assert int(whole.step) == STEPS

    moments, killed, finished, reached = random.Random(0), 0, 0, set()
    while killed < count or not finished:
        workdir = tmp_path / str(finished)
        run = start(command(workdir), log)
        # Once enough were killed, the last one may end.
        patience = seconds * moments.uniform(0.05, 1.05) if killed < count else None
        try:
            assert run.wait(patience) == 0, log.read_text()
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            killed += 1
            reached.add(max((int(p.name) for p in steps_saved(workdir)), default=0))
            continue
        finished += 1
        chex.assert_trees_all_equal(load_run(workdir).state, whole)
        assert "Warning" not in log.read_text(errors="replace"), "no whole state was lost"
        assert (workdir / "picture.png").read_bytes() == (
            tmp_path / "whole" / "picture.png"
        ).read_bytes()
    print(f"{killed} kills, {finished} runs; newest checkpoints after them: {sorted(reached)}")


def page_state(workdir: Path) -> str:
    page = workdir / "index.html"
    return re.search('class="state ([a-z]+)"', page.read_text())[1] if page.exists() else "none"


@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_an_interruption_at_any_moment_is_130_and_one_line(count, command, tmp_path):
    log, moments = tmp_path / "log", random.Random(count)
    before = time.monotonic()
    assert start(command(tmp_path / "whole"), log).wait() == 0, log.read_text()
    seconds = time.monotonic() - before
    for number in range(count):
        workdir = tmp_path / str(number)
        run = start(command(workdir), log)
        # Python itself needs the first moments, longer on a busy machine.
        time.sleep(moments.uniform(0.05, 1.1) * seconds)
        run.send_signal((signal.SIGINT, signal.SIGHUP, signal.SIGTERM)[number % 3])
        code = run.wait(60)
        text = log.read_text(errors="replace")
        assert code in (0, 130) and "Traceback" not in text, text
        assert code == 0 or "Stopped" in text
        assert page_state(workdir) in (("finished",) if code == 0 else ("stopped", "none"))
    assert start(command(workdir), log).wait() == 0, log.read_text()
    assert page_state(workdir) == "finished"


def test_a_run_needs_no_standard_streams(command, tmp_path):
    line = shlex.join(command(tmp_path / "run")) + " <&- >&- 2>&-"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    assert subprocess.run(["bash", "-c", line], env=environment).returncode == 0
    assert page_state(tmp_path / "run") == "finished"


def steps_saved(workdir: Path) -> list[Path]:
    return [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
