"""Renders of several sizes in one run: one compilation a size, of the right one after a resume."""

import dataclasses

import chex
import numpy as np
import pytest

from dreamfusion_jax.diffusion.priors.analytic import analytic_prior
from dreamfusion_jax.runs import loop


@pytest.fixture
def run_of(tmp_path, make_config, make_run):
    """Makes a configuration of sizes 4 and 6, its run, and the list of the sizes traced."""

    def make(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        config = make_config(render_size=(4, 6), render_milestones=(3,), steps=6, half_size_steps=0)
        run = dataclasses.replace(config.run, workdir=str(tmp_path / folder), checkpoint_every=4)
        config, traced = dataclasses.replace(config, run=run), []
        gaussian = analytic_prior(0.2, 0.05)

        def encode(params, rgb, key):
            traced.append(rgb.shape[1])
            return gaussian.encode(params, rgb, key)

        return config, make_run(config, gaussian._replace(encode=encode)), traced

    return make


def test_renders_grow_at_their_milestone_and_resume_there(run_of, monkeypatch):
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))
    monkeypatch.setattr(loop, "FIRST_PREVIEW_SECONDS", float("inf"))
    config, run, traced = run_of("straight")
    assert [loop.stage_of(config, step) for step in range(6)] == [0, 0, 0, 1, 1, 1]
    straight = loop.train(config, run, started=0.0)
    assert traced == [4, 6]

    config, run, _ = run_of("killed")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "FIRST_PREVIEW_STEP", 5)  # after the checkpoint of step 4
        patch.setattr(loop.images, "preview", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, run, started=0.0)
    config, run, traced = run_of("killed")
    resumed = loop.train(config, run, started=0.0)
    assert traced == [6]
    chex.assert_trees_all_equal(straight, resumed)
