"""Training: a resumed fit is the straight one, and the losses know a right answer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.toybox import fit as fits
from dreamfusion_jax.toybox.recipes import Stage
from dreamfusion_jax.toybox.tasks import Task


def line_task() -> Task:
    """Fit y = 3 x - 1, with noise from the step's key."""

    def loss(params, batch, key):
        target = 3.0 * batch - 1.0 + 0.01 * jax.random.normal(key, batch.shape)
        error = jnp.mean((params["a"] * batch + params["b"] - target) ** 2)
        return error, {"error": error}

    return Task(
        init=lambda key: {"a": jax.random.normal(key), "b": jnp.zeros(())},
        batch=lambda rng, size: rng.normal(size=size).astype(np.float32),
        loss=loss,
        preview=lambda params: np.zeros((8, 8, 3), np.uint8),
    )


def test_resumed_fit_equals_the_straight_one_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(fits, "_SAVE_EVERY", 5)
    stage = Stage(steps=10, batch_size=8, learning_rate=0.1)
    straight = fits.fit(line_task(), stage, tmp_path / "straight", seed=1)

    class Stopped(Exception):
        pass

    def stop_at(step: int) -> Task:
        original, calls = line_task(), iter(range(100))

        def batch(rng, size):
            if next(calls) == step:
                raise Stopped
            return original.batch(rng, size)

        return original._replace(batch=batch)

    try:
        fits.fit(stop_at(7), stage, tmp_path / "cut", seed=1)
    except Stopped:
        pass
    resumed = fits.fit(line_task(), stage, tmp_path / "cut", seed=1)
    chex.assert_trees_all_equal(straight, resumed)


def test_fit_learns(tmp_path):
    params = fits.fit(line_task(), Stage(400, 32, 0.1), tmp_path, seed=0)
    chex.assert_trees_all_close(params, {"a": jnp.array(3.0), "b": jnp.array(-1.0)}, atol=0.05)
