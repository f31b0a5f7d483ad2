"""The watcher reads a work folder in which a run writes and deletes."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.state import build_scene, init_state
from dreamfusion_jax.training.step import replicate
from dreamfusion_jax.viewer import workdir_watcher
from dreamfusion_jax.viewer.workdir_watcher import WorkdirWatcher, progress
from tests.training.conftest import make_config  # noqa: F401, a fixture


@pytest.fixture
def config(make_config):  # noqa: F811
    """A run whose work folder holds nothing but its settings."""
    config = make_config(steps=30)
    workdir(config).mkdir()
    store_config(config)
    return config


def workdir(config: Config) -> Path:
    return Path(config.run.workdir)


class Run:
    """Saves states at step n, all of whose numbers are n."""

    def __init__(self, config: Config) -> None:
        scene = build_scene(config.scene)
        self.start = init_state(scene, make_optimizer(config.optimizer, 30), 0)
        self.devices = jax.local_devices()[:1]
        self.checkpoints = Checkpoints(workdir(config), self.devices)

    def save(self, *steps: int) -> None:
        for step in steps:
            state = jax.tree.map(lambda x, n=step: jnp.full_like(x, n), self.start)
            self.checkpoints.save(replicate(state, self.devices))
        self.checkpoints._manager.wait_until_finished()


@pytest.fixture
def run(config):
    run = Run(config)
    yield run
    run.checkpoints.close()


@pytest.fixture
def watcher(config):
    watcher = WorkdirWatcher(workdir(config))
    yield watcher
    watcher.close()


def scene_values(watcher) -> dict[int, float]:
    """A number of each scene by its step."""
    scenes = watcher.snapshot.scenes
    return {step: float(jax.tree.leaves(params)[0].ravel()[0]) for step, params in scenes.items()}


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_new_checkpoints_are_read_and_deleted_ones_cached(config, run, watcher):
    snapshots = []
    watcher.refresh(lambda: snapshots.append(watcher.snapshot))
    assert watcher.snapshot.scenes == {} and "before its first steps" in snapshots[-1].progress
    run.save(10)
    watcher.refresh()
    run.save(20, 30)  # two are kept
    before = files(workdir(config))
    watcher.refresh(lambda: snapshots.append(watcher.snapshot))
    assert files(workdir(config)) == before, "it only looks"
    assert scene_values(watcher) == {10: 10.0, 20: 20.0, 30: 30.0}
    assert "Finished" in snapshots[-1].progress and not snapshots[-1].error
    count = len(snapshots)
    watcher.refresh(lambda: snapshots.append(watcher.snapshot))
    assert len(snapshots) == count, "nothing is new"


def test_a_restarted_run_replaces_the_old_one(config, run, watcher):
    run.save(20)
    watcher.refresh()
    run.checkpoints.close()
    shutil.rmtree(workdir(config) / "checkpoints")
    watcher.refresh()
    assert watcher.snapshot.scenes == {}
    restarted = Run(config)
    restarted.save(10)
    watcher.refresh()
    restarted.checkpoints.close()
    assert scene_values(watcher) == {10: 10.0}


def test_a_checkpoint_deleted_while_read_is_no_error(config, run, watcher, monkeypatch):
    run.save(10, 20)
    restore = Checkpoints.restore_step

    def vanish(self, step, like):
        if step == 20:
            shutil.rmtree(workdir(config) / "checkpoints" / "20")
        return restore(self, step, like)

    monkeypatch.setattr(Checkpoints, "restore_step", vanish)
    watcher.refresh()
    assert scene_values(watcher) == {10: 10.0} and not watcher.snapshot.error


def test_a_damaged_checkpoint_is_retried_then_reported(config, run, watcher):
    run.save(10, 20)
    folder = workdir(config) / "checkpoints" / "20" / "state"
    largest = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(b"")
    watcher.refresh()
    assert scene_values(watcher) == {10: 10.0} and not watcher.snapshot.error, (
        "it may be on its way"
    )
    largest.write_bytes(whole)
    watcher.refresh()
    assert scene_values(watcher) == {10: 10.0, 20: 20.0}


def test_lasting_damage_is_reported(config, run, watcher):
    run.save(10)
    shutil.rmtree(workdir(config) / "checkpoints" / "10" / "digest")
    for _ in range(4):
        watcher.refresh()
    assert "The checkpoint of step 10 is damaged" in watcher.snapshot.error


def test_more_steps_are_accepted_and_another_scene_reported(config, watcher):
    store_config(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=70)))
    watcher.refresh()
    assert watcher.config.train.steps == 70 and not watcher.snapshot.error
    store_config(dataclasses.replace(config, scene=SceneOptions(width=12)))
    watcher.refresh()
    watcher.refresh()  # it is said for as long as it is so
    assert "another scene" in watcher.snapshot.error
    (workdir(config) / "config.json").write_text("{")
    watcher.refresh()
    assert "cannot be read" in watcher.snapshot.error


def test_a_flat_picture_has_no_sides(make_config):  # noqa: F811
    config = dataclasses.replace(make_config(), scene=SceneOptions(field="image", image_size=8))
    workdir(config).mkdir()
    store_config(config)
    with pytest.raises(UserError, match="flat image"):
        WorkdirWatcher(workdir(config))


@pytest.mark.parametrize(
    "newest, last, silent_s, expected",
    [
        (1000, 1000, 9e9, "Finished: all 1,000 steps are done."),
        (0, 110, 40.0, "Running: step 110 of 1,000."),  # two lines of metrics are 100 s apart
        (250, 310, 329.0, "Running: step 310 of 1,000."),
        (250, 310, 1200.0, "Stopped, it seems: step 310 of 1,000, silent for 20 min."),
        (0, None, 0.0, "The run is before its first steps."),
    ],
)
def test_progress_in_a_sentence(newest, last, silent_s, expected):
    config = Config(train=TrainOptions(prompt="a cup", steps=1000))
    lines = [{"step": last - 10, "seconds": 50.0}, {"step": last, "seconds": 150.0}] if last else []
    assert progress(config, newest, lines, silent_s) == expected


def test_what_is_too_much_to_remember_is_forgotten_oldest_first(monkeypatch):
    monkeypatch.setattr(workdir_watcher, "_MAX_CACHE_BYTES", 3 * 8)
    scenes = {step: {"x": np.zeros(1)} for step in (4, 1, 3, 2, 5)}
    assert list(workdir_watcher._evict(scenes, [1, 5])) == [1, 4, 5]
