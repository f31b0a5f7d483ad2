"""Coarse meshes of unfinished runs: made beside them, rarely, and never waited for."""

import sys
import time
from pathlib import Path

import jax
import pytest
import trimesh

from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import build_scene, init_state
from dreamfusion_jax.training.step import replicate
from dreamfusion_jax.webui import library
from dreamfusion_jax.webui.drafts import COMMAND, Drafts

# Stands in for the program: ends when it is told to, and notes its priority.
PROGRAM = """
import os, pathlib, sys, time
given = dict(a[2:].split("=", 1) for a in sys.argv[1:])
told = pathlib.Path(given["workdir"]) / "told"
while not told.exists():
    time.sleep(0.01)
pathlib.Path(given["file"]).write_text(str(os.nice(0)))
sys.exit(int(told.read_text()))
"""


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def drafts(clock, tmp_path):
    drafts = Drafts(tmp_path, tmp_path / "drafts", (sys.executable, "-c", PROGRAM), clock)
    yield drafts
    drafts.close()


def asset(step, name="a", **settings):
    config = config_from_settings("toybox", {"prompt": "a cup", "steps": 90, **settings})
    return library.StoredAsset(name, config, library.RUNNING, step)


def tell(folder, code):
    folder.mkdir(exist_ok=True)
    (folder / "told").write_text(str(code))


def until_idle(drafts):
    """Waits for the process at work, and leaves it to be collected."""
    drafts._job.process.wait(60)


def test_a_draft_is_made_of_each_newer_checkpoint(drafts, clock, tmp_path):
    assert drafts.get(asset(0)) is None and drafts._job is None, "there is no checkpoint"
    before = time.monotonic()
    assert drafts.get(asset(3)) is None
    assert time.monotonic() - before < 5.0, "nobody waits for it"
    at_work = drafts._job
    drafts.get(asset(4)), drafts.get(asset(5, "b"))
    assert drafts._job is at_work, "one at a time"
    clock.now += 2.0
    tell(tmp_path / "a", 0)
    until_idle(drafts)
    first = drafts.get(asset(5))
    assert first.step == 3 and int(Path(first.path).read_text()) == 19, "of the least priority"
    clock.now += 17.0
    assert drafts.get(asset(5)) == first and drafts._job is None, "a tenth of the time is enough"
    clock.now += 2.0
    assert drafts.get(asset(5)) == first and drafts._job
    until_idle(drafts)
    assert drafts.get(asset(5)).step == 5 and not Path(first.path).exists()
    clock.now += 1000.0
    assert drafts.get(asset(5)).step == 5 and drafts._job is None, "nothing new was saved"


def test_a_checkpoint_without_a_surface_is_tried_once(drafts, clock, tmp_path):
    tell(tmp_path / "a", 1)
    drafts.get(asset(3))
    until_idle(drafts)
    clock.now += 1e6  # while no page is open
    assert drafts.get(asset(3)) is None and drafts._job is None
    clock.now += 301.0
    assert drafts.get(asset(3)) is None and drafts._job is None
    tell(tmp_path / "a", 0)
    drafts.get(asset(6))
    until_idle(drafts)
    assert drafts.get(asset(6)).step == 6


def test_a_flat_image_has_no_draft_and_closing_ends_all(drafts):
    assert drafts.get(asset(3, field="image")) is None and drafts._job is None
    drafts.get(asset(3))
    process = drafts._job.process
    drafts.close()
    assert process.poll() is not None and drafts._job is None


def test_a_run_s_checkpoint_becomes_a_mesh_without_a_trace_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    folder = tmp_path / "a"
    small = {"width": 8, "depth": 1, "proposal_samples": 0, "fine_samples": 4}
    settings = {"prompt": "a cup", "workdir": str(folder), "compilation_cache": "none", **small}
    config = config_from_settings("toybox", settings)
    folder.mkdir()
    store_config(config)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state, devices = init_state(build_scene(config.scene), optimizer, 0), jax.local_devices()[:1]
    checkpoints = Checkpoints(folder, devices)
    checkpoints.save(replicate(state._replace(step=jax.numpy.asarray(7)), devices))
    checkpoints.close()
    before = files(folder)
    drafts = Drafts(tmp_path, tmp_path / "drafts", COMMAND)
    asset = library.read_asset(tmp_path, "a")
    assert asset.step == 7 and drafts.get(asset) is None
    assert drafts._job.process.wait(300) == 0
    mesh = trimesh.load(drafts.get(asset).path, file_type="glb", force="mesh")
    assert 0 < len(mesh.faces) <= 3000 and mesh.visual.material.baseColorTexture is not None
    assert files(folder) == before


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
