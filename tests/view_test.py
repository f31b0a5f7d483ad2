"""The viewer as its user meets it: the real command, a real browser, a scene with no symmetry."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dreamfusion_jax import view
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runs import lock, mesh_files
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.runtime.errors import RunError, UserError
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import OptimizerOptions, TrainOptions
from dreamfusion_jax.training.state import build_scene, init_state
from dreamfusion_jax.training.step import replicate
from tests.browser import opened

STEPS, SIDE = 20, 24
STILL_S, PATIENCE_S = 1.5, 30.0
RED, BLUE = (6.0, -6.0, -6.0), (-6.0, -6.0, 6.0)  # logits
CONFIG = Config(
    scene=SceneOptions(field="grid", grid_resolution=SIDE, proposal_samples=0, blob_scale=0.0),
    train=TrainOptions(prompt="a [crane](x) <b>", steps=STEPS),
    optimizer=OptimizerOptions(),
    run=RunOptions(mesh_resolution=32, texture_size=32, checkpoint_every=10),
)


def crane(color):
    """A post with an arm to one side: seen from anywhere, neither side nor end is like another."""
    x, y, z = np.meshgrid(*[np.linspace(-1.0, 1.0, SIDE)] * 3, indexing="ij")
    post = (np.abs(x + 0.1) < 0.2) & (np.abs(y + 0.2) < 0.2) & (np.abs(z) < 0.6)
    arm = (np.abs(x + 0.1) < 0.2) & (y > 0.0) & (y < 0.6) & (z > 0.2) & (z < 0.6)
    grid = np.empty((SIDE,) * 3 + (4,), np.float32)
    grid[..., 0] = np.where(post | arm, 3.0, -12.0)
    grid[..., 1:] = color
    return {"field": {"grid": jnp.asarray(grid)}}


def save(workdir, step, params):
    config, devices = CONFIG, jax.local_devices()[:1]
    optimizer = make_optimizer(config.optimizer, STEPS)
    state = init_state(build_scene(config.scene), optimizer, 0)
    state = state._replace(step=jnp.int32(step), params={**state.params, "scene": params})
    checkpoints = Checkpoints(workdir, devices)
    checkpoints.save(replicate(state, devices))
    checkpoints.close()


@contextlib.contextmanager
def viewer(workdir, port):
    """The running command, and the lines that it writes."""
    command = [sys.executable, "-m", "dreamfusion_jax.view", f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    environment["XDG_CACHE_HOME"] = str(workdir / "cache")
    process = subprocess.Popen(
        [*command, f"--port={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def address(process) -> str:
    """Returns the address that the command prints when it is ready."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if match := re.search(r"http://127\.0\.0\.1:\d+", line):
            return match[0]
    raise AssertionError("".join(lines))


def shape(page, channel):
    """Where the middle of the window, which has no controls, is mostly of one color: [H, W]."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image = np.asarray(image).astype(int)[:, 330:560]
    return image[..., channel] - np.delete(image, channel, -1).max(-1) > 110


def await_shape(page, channel, is_right):
    """The shape once it is right and stays the same: without a graphics card frames come late."""
    last, since, end = np.zeros(0), 0.0, time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        now = shape(page, channel)
        if not np.array_equal(now, last):
            last, since = now, time.monotonic()
        elif time.monotonic() - since > STILL_S and now.any() and is_right(now):
            return now
        page.wait_for_timeout(200)
    raise AssertionError(f"color {channel} covers {now.mean():.3f} of the picture")


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def choose(page, control, value):
    page.get_by_role("combobox", name=control).click()
    page.get_by_role("option", name=value).click()


@pytest.mark.skipif(not importlib.util.find_spec("viser"), reason="needs viser")
def test_orbit_mesh_and_new_checkpoints_in_a_browser(tmp_path):
    pytest.importorskip("playwright.sync_api")
    store_config(
        dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, workdir=str(tmp_path)))
    )
    with socket.socket() as blocker, contextlib.ExitStack() as stack:
        blocker.bind(("127.0.0.1", 0))
        blocker.listen()
        port = min(blocker.getsockname()[1], 64000)
        process = stack.enter_context(viewer(tmp_path, port))
        url = address(process)
        assert not url.endswith(f":{port}"), "that port is taken"
        size = {"width": 900, "height": 400}
        page, events = stack.enter_context(opened(url, viewport=size))
        page.set_default_timeout(120_000.0)  # WebGL without a graphics card, on a busy machine
        page.get_by_text("a [crane](x) <b>").wait_for()
        page.get_by_text("Waiting for the first checkpoint, which comes after step 10").wait_for()

        red = crane(RED)
        save(tmp_path, 10, red)
        page.get_by_text("Shown: step 10").wait_for()
        choose(page, "show", "albedo")
        front = await_shape(page, 0, lambda seen: 0.02 < seen.mean() < 0.6)
        choose(page, "show", "mesh")
        page.get_by_text("There is no mesh.glb yet").wait_for()
        mesh_files.write_mesh(tmp_path, build_scene(CONFIG.scene), red, 10, CONFIG)
        page.get_by_text("The mesh is mesh.glb").wait_for()
        await_shape(page, 0, lambda seen: overlap(seen, front) > 0.85)

        page.mouse.move(450, 200)
        page.mouse.down()
        page.mouse.move(370, 170, steps=4)
        page.mouse.up()
        rotated = await_shape(page, 0, lambda seen: overlap(seen, front) < 0.7)
        choose(page, "show", "albedo")
        await_shape(page, 0, lambda seen: overlap(seen, rotated) > 0.85)

        save(tmp_path, 20, crane(BLUE))
        page.get_by_text("Shown: step 20").wait_for()
        page.get_by_text("Finished: all 20 steps are done").wait_for()
        await_shape(page, 2, lambda seen: overlap(seen, rotated) > 0.85)
        slider = page.get_by_role("slider")
        slider.press("Home")  # an arrow would turn viser's camera, too
        page.get_by_text("Shown: step 10").wait_for()
        await_shape(page, 0, lambda seen: overlap(seen, rotated) > 0.85)
        assert not page.get_by_role("checkbox", name="follow").is_checked()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save image").click()
        saved = np.asarray(Image.open(download.value.path()))
        assert download.value.suggested_filename == "a-crane-x-b-10-albedo.png"
        assert abs(saved.shape[0] - saved.shape[1] * 400 / 900) <= 1 and np.ptp(saved) > 100

        theirs = "THREE.Clock"  # viser's library speaks to itself
        assert [text for text in events.complaints if theirs not in text] == []
        assert all(request.startswith((url, f"blob:{url}")) for request in events.requests)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read().split("\n")[-2:] == ["The viewer is closed.", ""]


def test_without_viser_the_command_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "viser", None)
    monkeypatch.delitem(sys.modules, "dreamfusion_jax.viewer.server", raising=False)
    with pytest.raises(UserError, match="pip install viser"):
        view.view(str(tmp_path), 8080)


@pytest.mark.parametrize("end", ["killed", "in error"])
def test_a_run_that_ended_before_config_json_is_named(end, tmp_path, monkeypatch):
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    file = tmp_path / lock.LOCK
    file.write_text(f"process {dead.pid if end == 'killed' else os.getpid()} on {os.uname()[1]}\n")
    monkeypatch.setattr(view.time, "sleep", lambda _: file.unlink())
    with pytest.raises(RunError, match=f"run in {tmp_path} ended before .*start it again"):
        view._await_config(tmp_path)


def test_a_run_that_begins_is_waited_for(tmp_path, monkeypatch, capsys):
    view._await_config(tmp_path)
    assert capsys.readouterr().out == "", "there is no run"
    with lock.locked(tmp_path):
        monkeypatch.setattr(view.time, "sleep", lambda _: (tmp_path / "config.json").touch())
        view._await_config(tmp_path)
    assert f"Waiting for the run in {tmp_path}" in capsys.readouterr().out
