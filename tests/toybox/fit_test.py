"""Training: a resumed fit is the straight one, and the losses know a right answer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dreamfusion_jax.toybox import fit as fits
from dreamfusion_jax.toybox.recipes import Stage
from dreamfusion_jax.toybox.tasks import Task


def plane_task() -> Task:
    """Fit y = 3 x_0 + 2 x_1 - 1, with noise from the step's key."""

    def loss(params, batch, key):
        target = batch @ jnp.array([[3.0], [2.0]]) - 1.0
        target += 0.01 * jax.random.normal(key, target.shape)
        error = jnp.mean((batch @ params["kernel"] + params["bias"] - target) ** 2)
        return error, {"error": error}

    return Task(
        init=lambda key: {"kernel": jax.random.normal(key, (2, 1)), "bias": jnp.zeros(1)},
        batch=lambda rng, size, step: rng.normal(size=(size, 2)).astype(np.float32),
        loss=loss,
        preview=lambda params: np.zeros((8, 8, 3), np.uint8),
    )


def test_resumed_fit_equals_the_straight_one_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(fits, "_SAVE_EVERY", 5)
    stage = Stage(steps=10, batch_size=8, learning_rate=0.1)
    straight = fits.fit(plane_task(), stage, tmp_path / "straight", seed=1)

    class Stopped(Exception):
        pass

    def stop_at(step: int) -> Task:
        original, calls = plane_task(), iter(range(100))

        def batch(rng, size, number):
            if next(calls) == step:
                raise Stopped
            return original.batch(rng, size, number)

        return original._replace(batch=batch)

    try:
        fits.fit(stop_at(7), stage, tmp_path / "cut", seed=1)
    except Stopped:
        pass
    resumed = fits.fit(plane_task(), stage, tmp_path / "cut", seed=1)
    chex.assert_trees_all_equal(straight, resumed)


def test_another_batch_size_goes_on_and_counts_its_images(tmp_path):
    start = Stage(steps=2, batch_size=8, learning_rate=0.1)
    fits.fit(plane_task(), start, tmp_path, seed=1)
    fits.fit(plane_task(), start._replace(steps=5, batch_size=32), tmp_path, seed=1)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        state = manager.restore(5, args=ocp.args.StandardRestore())
    assert int(state["images"]) == 2 * 8 + 3 * 32


def test_fit_learns(tmp_path):
    params = fits.fit(plane_task(), Stage(400, 32, 0.1), tmp_path, seed=0)
    right = {"kernel": jnp.array([[3.0], [2.0]]), "bias": jnp.array([-1.0])}
    chex.assert_trees_all_close(params, right, atol=0.05)
