"""The wandb logger, with a fake of the wandb module."""

import dataclasses
import sys
import time
import types

import numpy as np
import pytest

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import loop, wandb_logger
from dreamfusion_jax.runtime.errors import RunError, UserError


class FakeRun:
    def __init__(self, settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, values, step):
        assert not self.finished
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that were started in wandb."""
    started: list[FakeRun] = []
    module = types.ModuleType("wandb")
    module.init = lambda **settings: started.append(FakeRun(settings)) or started[-1]
    module.Image = lambda image: ("image", image.shape, image.dtype)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return started


@pytest.fixture
def logged(make_config):
    config = make_config(steps=3)
    run = dataclasses.replace(config.run, wandb="chairs", log_every=2)
    return dataclasses.replace(config, run=run)


def test_metrics_and_previews_are_sent_and_the_id_is_kept(
    runs, logged, make_run, count_step, monkeypatch
):
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))
    for steps in (3, 4):
        train = dataclasses.replace(logged.train, steps=steps)
        config = dataclasses.replace(logged, train=train)
        loop.train(config, make_run(config)._replace(step=count_step), time.monotonic())
    first, second = runs
    assert first.settings["project"] == "chairs" and first.settings["name"] == "a cup"
    assert first.settings["config"] == configs.to_dict(logged)
    assert str(first.settings["dir"]) == logged.run.workdir
    assert first.settings["id"] == second.settings["id"] and second.settings["resume"] == "allow"
    numbers = [step for step, values in first.logged if "residual_rms" in values]
    assert numbers == [2, 3]
    previews = [values["preview"] for _, values in first.logged if "preview" in values]
    assert previews == [("image", (8, 32, 3), np.uint8)]
    assert [step for step, _ in second.logged] == [4]
    assert first.finished and second.finished


def test_a_missing_or_failing_wandb_is_one_sentence(runs, logged, tmp_path, monkeypatch):
    def refuse(**_):
        raise ValueError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"--wandb=chairs .*\(No API key configured.\): fix"):
        wandb_logger.WandbRun(logged)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    monkeypatch.setattr(loop, "read_prior", lambda *_: pytest.fail("told too late"))
    with pytest.raises(UserError, match="--wandb needs .* pip install wandb"):
        loop.prepare(logged, {})
