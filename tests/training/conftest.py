"""A run of the smallest kind: the analytic prior, a narrow field, images of 6 x 6."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.diffusion.priors.prior import Prior
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.loop import Run
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from dreamfusion_jax.training.optimizer import make_optimizer
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.step import TrainStep, make_train_step, stage_setups

SCENE = SceneOptions(
    **{"field": "mip", "width": 8, "depth": 1, "max_degree": 2},
    **{"proposal_samples": 6, "proposal_resolution": 4, "fine_samples": 6},
)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    def make(**train) -> Config:
        settings = {"prompt": "a cup", "steps": 10, "render_size": (6,), "shading_start_step": 2}
        return Config(
            scene=SCENE,
            train=TrainOptions(**{**settings, **train}),
            run=RunOptions(workdir=str(tmp_path / "run"), log_every=1, preview_size=8),
        )

    return make


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Makes a run of a configuration, with the analytic prior or another one."""

    def make(config: Config, prior: Prior | None = None) -> Run:
        workdir = Path(config.run.workdir)
        workdir.mkdir(exist_ok=True)
        setup = loop.make_setup(config, prior or analytic_prior(0.2, 0.05), SCHEMES)
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        devices = jax.local_devices()[:1]
        step, *later = (make_train_step(s, optimizer, devices) for s in stage_setups(setup))
        return Run(
            workdir,
            setup,
            {"unused": jax.numpy.zeros(3)},
            loop.embed_prompts(setup, config),
            optimizer,
            devices,
            step,
            later_steps=tuple(later),
        )

    return make


@pytest.fixture
def count_step() -> TrainStep:
    """Counts, as a step that does nothing else, for tests of the loop."""
    names = ("opacity_mean", "residual_rms", "skipped_steps", "consecutive_skipped", "stop")

    def step(device, state, weights, table):
        return state._replace(step=state.step + 1), dict.fromkeys(names, np.float32(0.0))

    return step
