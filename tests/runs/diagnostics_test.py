"""A non-finite step changes nothing; many in a row end the run."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.runs import loop
from dreamfusion_jax.runs.checkpoint import Checkpoints
from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.training.step import place_input, replicate
from dreamfusion_jax.training.views import draw_view


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(loop.images, "preview", lambda *_: np.zeros((8, 32, 3), np.uint8))


@pytest.fixture
def config(make_config):
    config = make_config(steps=50)  # the same for all, so that one program serves them
    run = dataclasses.replace(config.run, max_skipped_steps=3, checkpoint_every=100)
    return dataclasses.replace(config, run=run)


@pytest.fixture
def faulty_run(config, make_run):
    """Makes a run whose prior predicts NaN below a time `limit` and adds a `bias` elsewhere."""

    def make(limit=0.0, bias=0.0):
        run = make_run(config)

        def predict(params, z_t, t, cond):
            wrong = jnp.where(t < params["unet"]["limit"], jnp.nan, params["unet"]["bias"])
            return run.prior.predict({}, z_t, t, cond) + wrong.reshape(-1, 1, 1, 1)

        prior = run.prior._replace(predict=predict)
        params = {"unet": {"limit": jnp.float32(limit), "bias": jnp.float32(bias)}}
        return make_run(config, prior)._replace(prior_params=params)

    return make


def test_non_finite_steps_change_only_the_counters(config, faulty_run):
    times = [float(draw_view(config, jnp.int32(step), jnp.int32(0)).t) for step in range(12)]
    limit = float(np.median(times))
    run = faulty_run(limit)
    state = loop.init_state(run.scene, run.optimizer, 0)
    state, weights, table = replicate((state, run.prior_params, run.table), run.devices)
    skipped = consecutive = 0
    for step, t in enumerate(times):
        before = jax.device_get(state)
        state, metrics = run.step(place_input(run.devices), state, weights, table)
        after = jax.device_get(state)
        wrong = t < limit
        skipped, consecutive = skipped + wrong, (consecutive + 1) * wrong
        assert (after.step, after.skipped, after.consecutive_skipped) == (
            step + 1,
            skipped,
            consecutive,
        )
        assert (metrics["skipped_steps"], metrics["consecutive_skipped"]) == (skipped, consecutive)
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
    """Returns the message with which the run ends, and its report."""
    with pytest.raises(RunError) as raised:
        loop.train(config, run, started=loop.time.monotonic())
    (report,) = Path(config.run.workdir).glob("diagnostics_step_*.json")
    assert str(report) in str(raised.value)
    return str(raised.value), json.loads(report.read_text())


def saved_state(config, run):
    checkpoints = Checkpoints(Path(config.run.workdir))
    try:
        return checkpoints.restore(loop.init_state(run.scene, run.optimizer, 0))
    finally:
        checkpoints.close()


def test_nans_in_the_prior_stop_the_run_and_are_named(config, faulty_run):
    run = faulty_run(bias=jnp.nan)
    message, report = stopped(config, run)
    # Three are allowed; what a step tells is read while the next one runs.
    assert "4 steps in a row, up to step 4" in message and "['unet']['bias']" in message
    assert "check its files" in message
    assert report["consecutive_skipped"] == 4
    assert report["prior"]["['unet']['bias']"] == {"norm": None, "not_finite": 1}
    assert report["prior"]["['unet']['limit']"] == {"norm": 0.0, "not_finite": 0}
    # The views are those that the skipped steps drew.
    assert [view["step"] for view in report["views"]] == [0, 1, 2, 3]
    draw = draw_view(config, jnp.int32(2), jnp.int32(0))
    assert report["views"][2]["t"] == pytest.approx(float(draw.t))
    np.testing.assert_allclose(
        report["views"][2]["camera_to_world"], draw.view.camera.pose, rtol=1e-5, atol=1e-6
    )
    # What is saved is the last good state: here the first one.
    state, start = saved_state(config, run), loop.init_state(run.scene, run.optimizer, 0)
    chex.assert_trees_all_equal(state.params, jax.device_get(start.params))


def test_infinities_in_the_field_stop_the_run_and_are_named(config, faulty_run):
    run = faulty_run()
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


def test_non_finite_steps_alone_name_settings_and_may_be_retried(config, faulty_run):
    message, _ = stopped(config, faulty_run(limit=1.0))
    for flag in ("--prior_dtype", "--learning_rate", "--guidance_scale"):
        assert flag in message
    # What was skipped in a row counts anew, or the first step that is skipped would end it again.
    state = loop.train(config, faulty_run(), started=loop.time.monotonic())
    assert (int(state.step), int(state.skipped), int(state.consecutive_skipped)) == (50, 4, 0)
