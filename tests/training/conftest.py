"""A run of the smallest kind: the analytic prior, a narrow field, pictures of 6 x 6."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from dreamfusion_jax.config import Config
from dreamfusion_jax.diffusion.prior import analytic_prior
from dreamfusion_jax.prompts import text_table
from dreamfusion_jax.settings import CameraConfig, PriorConfig, RunConfig, SceneConfig, TrainConfig
from dreamfusion_jax.training.loop import Run
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.state import build_scene
from dreamfusion_jax.training.step import TrainStep, make_train_step
from dreamfusion_jax.training.views import text_options

SCENE = SceneConfig(
    width=8, depth=1, max_degree=2, proposal_samples=6, proposal_resolution=4, fine_samples=6
)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    def make(**train) -> Config:
        settings = {"prompt": "a cup", "steps": 10, "render_size": 6, "shading_start_step": 2}
        return Config(
            SCENE,
            CameraConfig(),
            PriorConfig(),
            TrainConfig(**{**settings, **train}),
            run=RunConfig(workdir=str(tmp_path / "run"), log_every=1, preview_size=8),
        )

    return make


@pytest.fixture
def make_run() -> Callable[[Config], Run]:
    def make(config: Config) -> Run:
        prior = analytic_prior(0.2, 0.05)
        table = text_table(prior, config.train.prompt, "", text_options(config.train))
        workdir = Path(config.run.workdir)
        workdir.mkdir(exist_ok=True)
        scene, devices = build_scene(config.scene), jax.local_devices()[:1]
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        step = make_train_step(config, scene, prior, optimizer, devices)
        weights = {"unused": jax.numpy.zeros(3)}
        return Run(workdir, scene, prior, weights, table, optimizer, devices, step)

    return make


@pytest.fixture
def count_step() -> TrainStep:
    """A step that only counts, for tests of what is around it."""
    names = ("opacity_mean", "residual_rms", "skipped_steps", "skipped_in_row", "stop")

    def step(device, state, weights, table):
        return state._replace(step=state.step + 1), dict.fromkeys(names, np.float32(0.0))

    return step
