"""A run of two stages in one folder: what is set aside, how it resumes, what the page shows."""

import dataclasses
import json
import re

import numpy as np
import pytest

from dreamfusion_jax.config.flags import read_config, validate
from dreamfusion_jax.runs import job, loop, two_stages
from dreamfusion_jax.runs.checkpoint import load_run
from dreamfusion_jax.runs.workdir import span
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.png import encode_png
from tests.runs.start_test import FIRST

GRAY = encode_png(np.full((4, 4, 3), 128, np.uint8))


@pytest.fixture
def config(make_config):
    both = make_config(steps=3, second_stage_steps=2)
    return validate(dataclasses.replace(both, scene=FIRST))


@pytest.fixture
def make(make_run, count_step, monkeypatch):
    """Makes an asset with steps that only count, and images that are gray: config -> runs."""

    def prepare(config, schemes, other=None):
        opened.append(other)
        return make_run(config)._replace(step=count_step)

    def make_outputs(workdir, saved, get_sampler, names):
        written.append((workdir.name, int(saved.state.step), tuple(names)))
        for name in ("poster.png", "mesh_preview.png"):
            (workdir / name).write_bytes(GRAY)
        job.build.rewrite_page(workdir, saved.config, int(saved.state.step), {})

    opened: list = []
    written: list = []
    monkeypatch.setattr(loop, "prepare", prepare)
    monkeypatch.setattr(job, "make_outputs", make_outputs)
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))
    monkeypatch.setattr(job, "missing_outputs", lambda workdir, config, step: ["mesh.glb", "x"])

    def run(config):
        opened.clear(), written.clear()
        return job.make_asset(config, {}), tuple(opened), tuple(written)

    return run


def test_both_stages_are_one_run_in_one_folder(config, make, tmp_path, capsys):
    runs, opened, written = make(config)
    workdir = tmp_path / "run"
    assert opened == (None, runs.first), "one prior for both"
    assert written == (("run", 3, ("mesh.glb",)), ("run", 2, ("mesh.glb", "x")))
    assert read_config(workdir / "first_stage" / "config.json") == config
    first, second = load_run(workdir / "first_stage"), load_run(workdir)
    assert (int(first.state.step), int(second.state.step)) == (3, 2)
    assert second.config == two_stages.refined(config)
    assert second.config.scene.render == "surface"
    assert span(workdir, second.config) == (3, 5) and span(workdir / "no", config) == (0, 5)
    error = capsys.readouterr().err
    assert "step 5/5" in error and "step 3/3" not in error, "one progress"


def test_the_page_shows_before_and_after_and_one_command(config, make, tmp_path):
    make(config)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "Finished, 5 steps" in page
    for what in ("The scene", "The mesh"):
        for stage in ("first", "second"):
            assert f'alt="{what} after the {stage} stage"' in page
    assert "--second_stage_steps=2" in re.search("<pre.*?</pre>", page, re.DOTALL)[0]
    steps = [
        line["step"]
        for line in job.build._lines(tmp_path / "run", tmp_path / "run" / "metrics.jsonl")
    ]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stops_at", [2, 1])
def test_the_same_command_goes_on_in_the_stage_it_left(config, make, monkeypatch, capsys, stops_at):
    """An interruption after step 2 of the first stage, or after step 1 of the second."""
    train, stage = loop._train_steps, "first" if stops_at == 2 else "second"

    def interrupted(config, run, checkpoints, state, *others):
        if (config.train.steps == 3) == (stage == "first"):
            checkpoints.save(loop.replicate(state._replace(step=np.int32(stops_at)), run.devices))
            raise loop.Interrupted("here")
        return train(config, run, checkpoints, state, *others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_steps", interrupted)
        with pytest.raises(loop.Interrupted):
            make(config)
    capsys.readouterr()
    _, _, written = make(config)
    assert [step for _, step, _ in written] == ([3, 2] if stage == "first" else [2])
    done = 2 if stage == "first" else 4
    assert f"after step {done}." in capsys.readouterr().out
    _, opened, _ = make(config)
    assert not opened, "nothing is optimized again"


def test_a_move_cut_short_is_finished(config, make, monkeypatch, tmp_path):
    moved = []

    def move(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(source.name)
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(two_stages, "move", move)
        with pytest.raises(KeyboardInterrupt):
            make(config)
    assert not (tmp_path / "run" / "first_stage" / "config.json").exists()
    _, _, written = make(config)
    assert [step for _, step, _ in written] == [2], "the first stage is not made again"
    assert int(load_run(tmp_path / "run" / "first_stage").state.step) == 3


def test_a_finished_run_can_be_given_a_second_stage(config, make, tmp_path):
    alone = dataclasses.replace(
        config, train=dataclasses.replace(config.train, second_stage_steps=0)
    )
    make(alone)
    _, _, written = make(config)
    assert [step for _, step, _ in written] == [3, 2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 2


def test_other_settings_are_refused_in_the_second_stage(config, make):
    make(config)
    for name, value, message in (
        ("seed", 9, "--seed=0, not 9"),
        ("steps", 4, "went on from 3 steps; give --steps=3"),
    ):
        other = dataclasses.replace(
            config, train=dataclasses.replace(config.train, **{name: value})
        )
        with pytest.raises(UserError, match=message):
            make(other)
    longer = dataclasses.replace(config.train, second_stage_steps=4)
    _, _, written = make(dataclasses.replace(config, train=longer))
    assert [step for _, step, _ in written] == [4]


def test_a_copied_folder_goes_on_where_it_is(config, make, tmp_path):
    make(config)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = dataclasses.replace(
        config, run=dataclasses.replace(config.run, workdir=str(tmp_path / "moved"))
    )
    _, opened, written = make(moved)
    assert not opened and [step for _, step, _ in written] == [2]
