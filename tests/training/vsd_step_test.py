"""VSD in the one compiled step: devices agree, a killed run goes on to the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOUR_DEVICES = """
import dataclasses, sys, time
from pathlib import Path
import chex, jax, numpy as np, optax
sys.path.insert(0, sys.argv[1])
from conftest import SCENE
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.checkpoint import load_run
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runs.workdir import store_config
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.state import init_state
from dreamfusion_jax.training.step import make_train_step, place_input, replicate
from dreamfusion_jax.viewer.workdir_watcher import WorkdirWatcher

jax.config.update("jax_compilation_cache_dir", sys.argv[2] + "/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
ALL = jax.local_devices()
assert len(ALL) == 4
prior, params = load_prior(sys.argv[3])
folder = Path(sys.argv[2])

def configured(devices, workdir=""):
    return Config(
        scene=SCENE,
        distillation=DistillationOptions(objective="vsd", vsd_lora_rank=2),
        train=TrainOptions(
            prompt="a cup", steps=4, render_size=(6,), views_per_device=4 // devices
        ),
        run=RunOptions(workdir=str(workdir), log_every=1, checkpoint_every=2),
    )

def run_on(devices, workdir="", optimizer=None):
    chex.clear_trace_counter()
    config = configured(devices, workdir)
    setup = loop.make_setup(config, prior, SCHEMES)
    once = setup.objective._replace(
        gradient=chex.assert_max_traces(n=1)(setup.objective.gradient)
    )
    setup = setup._replace(objective=once)
    optimizer = optimizer or make_optimizer(config.optimizer, config.train.steps)
    table, used = loop.embed_prompts(setup, config), ALL[:devices]
    step = make_train_step(setup, optimizer, used)
    return loop.Run(Path(workdir), setup, params, table, optimizer, used, step)

# Gradient descent: what params lose is their gradient.
def descended(devices):
    run = run_on(devices, optimizer=optax.sgd(0.1))
    state = init_state(run.scene, run.optimizer, 0, run.setup.objective, params)
    # A step that has moved b, so that a and the camera's first layer have gradients.
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda x: rng.normal(0.0, 0.2, x.shape).astype(np.float32),
                       state.params["objective"])
    start = {**state.params, "objective": own}
    state, frozen, table = replicate((state._replace(params=start), params, run.table), run.devices)
    for _ in range(2):
        state, metrics = run.step(place_input(run.devices), state, frozen, table)
    assert np.isfinite(metrics["objective_loss"])
    return start, jax.device_get(state.params)

start, one = descended(1)
_, four = descended(4)
chex.assert_trees_all_close(one, four, rtol=0, atol=1e-5)
moved = jax.tree.map(lambda a, b: np.asarray(a) - b, start["objective"], one["objective"])
norms = {name: float(optax.global_norm(moved[name])) for name in ("lora", "camera")}
assert min(norms.values()) > 1e-2, norms

def train(workdir, killed_at=0):
    def preview(*_):
        if killed_at:
            raise KeyboardInterrupt
        return np.zeros((8, 32, 3), np.uint8)
    loop.images.preview = preview
    loop.FIRST_PREVIEW_STEP, loop.FIRST_PREVIEW_SECONDS = killed_at or 1, 1e9
    workdir.mkdir(exist_ok=True)
    try:
        return loop.train(configured(4, workdir), run_on(4, workdir), time.monotonic())
    except KeyboardInterrupt:
        return None

straight = train(folder / "straight")
assert train(folder / "killed", killed_at=3) is None
resumed = train(folder / "killed")
chex.assert_trees_all_equal(straight, resumed)

# Those who only look at a scene load no prior, and find the whole state all the same.
store_config(configured(4, folder / "killed"))
chex.assert_trees_all_equal(load_run(folder / "killed").state, resumed)
watcher = WorkdirWatcher(folder / "killed")
watcher.refresh()
assert 4 in watcher.snapshot.scenes and not watcher.snapshot.error, watcher.snapshot
watcher.close()
"""


@pytest.mark.slow
def test_vsd_compiles_once_agrees_across_devices_and_resumes(tmp_path, tiny_prior):
    # Compiled at once rather than well: the network is tiny, its gradient long.
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES, here, str(tmp_path), str(tiny_prior)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
