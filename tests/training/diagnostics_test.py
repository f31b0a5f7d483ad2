"""Numbers gone wrong: a step that is not finite changes nothing; many in a row end the run."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.errors import RunError
from dreamfusion_jax.training import loop
from dreamfusion_jax.training.checkpoint import Checkpoints
from dreamfusion_jax.training.step import make_train_step, place_input, replicate
from dreamfusion_jax.training.views import draw_view


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(loop.render, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))


def with_prior(config, run, predict=None, weights=None):
    """The run with another prior, compiled for it."""
    prior = run.prior._replace(predict=predict) if predict else run.prior
    step = make_train_step(config, run.scene, prior, run.optimizer, run.devices)
    return run._replace(prior=prior, step=step, weights=run.weights if weights is None else weights)


def spoilt_below(limit, run):
    """A prior that says NaN at times t below `limit`."""

    def predict(weights, z_t, t, text):
        wrong = jnp.where(t < limit, jnp.nan, 0.0).reshape(-1, 1, 1, 1)
        return run.prior.predict(weights, z_t, t, text) + wrong

    return predict


def test_steps_that_are_not_finite_change_nothing_but_the_counters(make_config, make_run):
    config = make_config(steps=12)
    run = make_run(config)
    times = [float(draw_view(config, jnp.int32(step), jnp.int32(0)).t) for step in range(12)]
    limit = float(np.median(times))
    run = with_prior(config, run, spoilt_below(limit, run))
    state = loop.init_state(run.scene, run.optimizer, 0)
    state, weights, table = replicate((state, run.weights, run.table), run.devices)
    skipped = in_row = 0
    for step, t in enumerate(times):
        before = jax.device_get(state)
        state, metrics = run.step(place_input(run.devices), state, weights, table)
        after = jax.device_get(state)
        wrong = t < limit
        skipped, in_row = skipped + wrong, (in_row + 1) * wrong
        assert (after.step, after.skipped, after.skipped_in_row) == (step + 1, skipped, in_row)
        assert (metrics["skipped_steps"], metrics["skipped_in_row"]) == (skipped, in_row)
        chex.assert_tree_all_finite(after)
        if wrong:
            chex.assert_trees_all_equal(
                (before.params, before.opt_state), (after.params, after.opt_state)
            )
        else:
            assert optimizer_count(after) == optimizer_count(before) + 1
    assert 0 < skipped < 12


def optimizer_count(state):
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == np.int32]
    return max(int(count) for count in counts)


def stopped(config, run):
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, max_skipped_steps=3, checkpoint_every=100)
    )
    with pytest.raises(RunError) as told:
        loop.train(config, run, started=loop.time.monotonic())
    (report,) = Path(config.run.workdir).glob("diagnostics_step_*.json")
    assert str(report) in str(told.value)
    return str(told.value), json.loads(report.read_text())


def saved_state(config, run):
    checkpoints = Checkpoints(Path(config.run.workdir))
    try:
        return checkpoints.restore(loop.init_state(run.scene, run.optimizer, 0))
    finally:
        checkpoints.close()


def test_nans_in_the_priors_weights_stop_the_run_and_are_named(make_config, make_run):
    config = make_config(steps=50)
    run = make_run(config)

    def predict(weights, z_t, t, text):
        return run.prior.predict({}, z_t, t, text) + weights["unet"]["bias"]

    weights = {"unet": {"bias": jnp.float32(jnp.nan)}, "vae": {"scale": jnp.ones(3)}}
    message, report = stopped(config, with_prior(config, run, predict, weights))
    assert "3 steps in a row, up to step 3" in message and "['unet']['bias']" in message
    assert "get its files anew" in message
    assert report["skipped_in_row"] == 3 and report["prior"]["['unet']['bias']"]["not_finite"] == 1
    assert report["prior"]["['vae']['scale']"] == {
        "norm": pytest.approx(3**0.5),
        "not_finite": 0,
    }
    # The views are those that the skipped steps drew.
    assert [view["step"] for view in report["views"]] == [0, 1, 2]
    draw = draw_view(config, jnp.int32(2), jnp.int32(0))
    assert report["views"][2]["t"] == pytest.approx(float(draw.t))
    np.testing.assert_allclose(
        report["views"][2]["camera_to_world"], draw.view.camera.pose, rtol=1e-5, atol=1e-6
    )
    # What is saved is the last good state: here the first one.
    state, start = saved_state(config, run), loop.init_state(run.scene, run.optimizer, 0)
    chex.assert_trees_all_equal(state.params, jax.device_get(start.params))


def test_infinities_in_the_field_stop_the_run_and_are_named(make_config, make_run):
    config = make_config(steps=50)
    run = make_run(config)
    start = loop.init_state(run.scene, run.optimizer, 0)
    leaves, structure = jax.tree.flatten(start.params)
    leaves = [leaf.at[(0,) * leaf.ndim].set(jnp.inf) for leaf in leaves]
    state = start._replace(step=jnp.int32(1), params=jax.tree.unflatten(structure, leaves))
    checkpoints = Checkpoints(Path(config.run.workdir), run.devices)
    checkpoints.save(replicate(state, run.devices))
    checkpoints.close()
    message, report = stopped(config, run)
    assert "the scene's parameters are not" in message and "another --workdir" in message
    assert all(size["not_finite"] == 1 for size in report["scene"].values())


def test_where_only_the_steps_go_wrong_settings_are_named(make_config, make_run):
    config = make_config(steps=50)
    run = make_run(config)
    message, _ = stopped(config, with_prior(config, run, spoilt_below(1.0, run)))
    for flag in ("--prior_dtype", "--learning_rate", "--guidance_scale"):
        assert flag in message


def test_a_continued_run_may_skip_as_many_again(make_config, make_run):
    """Otherwise the first step that is skipped would end it again."""
    config = make_config(steps=50)
    run = make_run(config)
    stopped(config, with_prior(config, run, spoilt_below(1.0, run)))
    state = loop.train(config, run, started=loop.time.monotonic())
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (50, 3, 0)
