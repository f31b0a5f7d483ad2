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
from typing import NamedTuple

import chex
import pytest

from dreamfusion_jax.runs import lock
from dreamfusion_jax.runs.checkpoint import load_run
from dreamfusion_jax.webui import library
from dreamfusion_jax.webui.jobs import Queue
from tests.conftest import UNET, write_prior

STEPS = 60
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A run that takes seconds: a flat image of 8 x 8 pixels. Work folder -> its command."""
    compiled = tmp_path_factory.mktemp("compiled")
    # Most of such a run's time goes into tracing attention, of which this U-Net has little.
    without = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    prior = write_prior(tmp_path_factory.mktemp("prior"), {**UNET, **without})
    settings = (
        *("--prompt=a red chair", "--field=image", "--image_size=8", f"--steps={STEPS}"),
        *("--checkpoint_every=3", "--log_every=10", "--preview_every=30", "--preview_size=8"),
        *(f"--prior={prior}", f"--compilation_cache={compiled}"),
    )
    return lambda workdir: [
        *(sys.executable, "-m", "dreamfusion_jax.main", *settings, f"--workdir={workdir}")
    ]


def start(command: list[str], log: Path) -> subprocess.Popen:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT)


class Whole(NamedTuple):
    """A run that nobody stopped, and the seconds that it took."""

    workdir: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    for workdir in (folder / "compiles", folder / "whole"):
        before = time.monotonic()
        assert start(command(workdir), folder / "log").wait() == 0, (folder / "log").read_text()
        seconds = time.monotonic() - before
    return Whole(workdir, seconds)


@pytest.mark.parametrize("count", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_identical(count, command, whole, tmp_path):
    log, expected = tmp_path / "log", load_run(whole.workdir).state
    assert int(expected.step) == STEPS
    moments, killed, finished, reached = random.Random(0), 0, 0, set()
    while killed < count or not finished:
        workdir = tmp_path / str(finished)
        run = start(command(workdir), log)
        # Once enough were killed, the last one may end.
        patience = whole.seconds * moments.uniform(0.05, 1.05) if killed < count else None
        try:
            assert run.wait(patience) == 0, log.read_text()
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            killed += 1
            reached.add(max((int(p.name) for p in steps_saved(workdir)), default=0))
            continue
        finished += 1
        chex.assert_trees_all_equal(load_run(workdir).state, expected)
        assert "Warning" not in log.read_text(errors="replace"), "no whole state was lost"
        images = [folder / "picture.png" for folder in (workdir, whole.workdir)]
        assert images[0].read_bytes() == images[1].read_bytes()
    print(f"{killed} kills, {finished} runs; newest checkpoints after them: {sorted(reached)}")


def page_state(workdir: Path) -> str:
    page = workdir / "index.html"
    return re.search('class="state ([a-z]+)"', page.read_text())[1] if page.exists() else "none"


STOPS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


@pytest.mark.parametrize(
    "numbers",
    [STOPS[:2], *(pytest.param(50 * (n,), marks=pytest.mark.slow) for n in STOPS)],
    ids=["short", "SIGINT", "SIGHUP", "SIGTERM"],
)
def test_an_interruption_at_any_moment_is_130_and_one_line(numbers, command, whole, tmp_path):
    """From the first import to the last output; the next start goes on, and ends the same way."""
    log, moments, finished = tmp_path / "log", random.Random(len(numbers)), 0
    for number in numbers:
        workdir = tmp_path / str(finished)
        run = start(command(workdir), log)
        # Python itself needs the first moments, longer on a busy machine.
        time.sleep(moments.uniform(0.05, 1.1) * whole.seconds)
        run.send_signal(number)
        code = run.wait(60)
        text = log.read_text(errors="replace")
        assert code in (0, 130) and "Traceback" not in text, text
        assert code == 0 or "Stopped" in text
        assert page_state(workdir) in (("finished",) if code == 0 else ("stopped", "none"))
        finished += code == 0
    workdir = tmp_path / str(finished)
    assert start(command(workdir), log).wait() == 0, log.read_text()
    assert page_state(workdir) == "finished"
    print(f"{len(numbers)} signals, {finished} runs finished before theirs")


def test_a_run_needs_no_standard_streams(command, tmp_path):
    line = shlex.join(command(tmp_path / "run")) + " <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], env=ENVIRONMENT).returncode == 0
    assert page_state(tmp_path / "run") == "finished"


def steps_saved(workdir: Path) -> list[Path]:
    return [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]


def on_a_small_disk(command: list[str], disk: Path, size: str) -> list[str]:
    """Returns the command that runs another one with a disk of `size` bytes at `disk`."""
    mount = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(disk))}"
    return [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        f"{mount} && {shlex.join(command)}",
    ]


@pytest.mark.parametrize(
    "kilobytes", [150, *(pytest.param(n, marks=pytest.mark.slow) for n in range(25, 260, 10))]
)
def test_a_full_disk_is_one_sentence_that_names_the_file(kilobytes, command, tmp_path):
    """Whichever of the files it is that does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(on_a_small_disk(["true"], disk, "1m"), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    small = on_a_small_disk(command(disk / "run"), disk, f"{kilobytes}k")
    result = subprocess.run(small, env=ENVIRONMENT, capture_output=True, text=True)
    errors = [line for line in result.stderr.splitlines() if "compiling" not in line]
    assert result.returncode in (1, 2), result.stderr
    assert errors[-1].startswith("Error: ") and str(disk / "run") in errors[-1], result.stderr
    # XLA itself complains of slow compilation on a busy machine, before the first step.
    lines = result.stderr.split("optimizing ...")[-1].splitlines()
    assert len(lines) < 10 and "Traceback" not in result.stderr


# The studio without its page, which starts and continues the runs that it is asked for by lines.
STUDIO = """
import sys
from pathlib import Path
from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.webui.jobs import COMMAND, Queue
root = Path(sys.argv[1])
queue = Queue(root, (*COMMAND, *sys.argv[2:]))
queue.start()
for line in sys.stdin:
    settings = {"prompt": "a red chair", "workdir": root / line.strip()}
    try:
        queue.add(config_from_settings("toybox", settings))
    except UserError:  # at work, or waiting
        pass
"""


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_of_runs_and_of_the_studio_lose_nothing(count, command, whole, tmp_path):
    """What is told of a run is true after each, and the studio outlives its run."""
    expected, moments = load_run(whole.workdir).state, random.Random(count)
    victims, finished, saved, studio = ["run", "studio"] * count, 0, 0, None
    moments.shuffle(victims)
    end = time.monotonic() + (3 * len(victims) + 10) * whole.seconds
    while victims or not finished:
        assert time.monotonic() < end
        folder = tmp_path / str(finished)
        if studio is None:
            line = [sys.executable, "-c", STUDIO, str(tmp_path), *command("")[3:-1]]
            studio = subprocess.Popen(line, stdin=subprocess.PIPE, text=True, env=ENVIRONMENT)
        print(folder.name, file=studio.stdin, flush=True)
        time.sleep(whole.seconds * moments.uniform(0.05, 0.8))
        run = Queue(tmp_path).current == folder.name and Queue(tmp_path)._found.process
        if victims and victims[-1] == "studio":
            studio.kill()
            studio.wait()
            assert not run or is_alive(run) or state_of(folder) == library.FINISHED
            studio = None
            victims.pop()
        elif run and victims:
            os.kill(run, signal.SIGKILL)
            while is_alive(run) or lock.is_held(folder):  # until its last thread has gone
                assert time.monotonic() < end
                time.sleep(0.01)
            assert studio.poll() is None
            assert state_of(folder) in (None, library.STOPPED, library.FINISHED)
            victims.pop()
        newest = max((int(path.name) for path in steps_saved(folder)), default=0)
        assert newest >= saved, "nothing is lost"
        saved = newest
        if state_of(folder) == library.FINISHED:
            chex.assert_trees_all_equal(load_run(folder).state, expected)
            finished, saved = finished + 1, 0
    if studio:  # or the last run was done when it was killed
        studio.kill()
        studio.wait()


def state_of(folder: Path) -> str | None:
    asset = library.read_asset(folder.parent, folder.name)
    return asset.state if asset else None


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
