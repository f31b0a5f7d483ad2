"""Schedules of t: their ends, their order, and the share of steps that each time gets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.diffusion.schedule import STABLE_DIFFUSION
from dreamfusion_jax.distillation.options import DistillationOptions
from dreamfusion_jax.distillation.timesteps import dreamtime_weights, time_range

STEPS = 1001


def times(steps: int = STEPS, **options):
    """[steps] low and high ends at every step."""
    chosen = DistillationOptions(**options)
    return jax.jit(
        jax.vmap(lambda step: jnp.stack(time_range(step, steps, chosen, STABLE_DIFFUSION)))
    )(jnp.arange(steps)).T


def test_uniform_bounds_fall_linearly_and_stay():
    low, high = times(101, t_min=0.1, t_max_start=0.95, t_max_end=0.6)
    np.testing.assert_allclose(low, 0.1)
    np.testing.assert_allclose(high[jnp.array([0, 50, 100])], [0.95, 0.775, 0.6], rtol=1e-6)
    late = time_range(500, 101, DistillationOptions(t_min=0.1, t_max_end=0.6), STABLE_DIFFUSION)
    np.testing.assert_allclose(late, (0.1, 0.6), rtol=1e-6)
    chex.assert_tree_all_finite(time_range(0, 1, DistillationOptions(), STABLE_DIFFUSION))


def test_both_bounds_may_fall_within_the_first_steps():
    """MVDream: the least t from 0.98 to 0.02, the greatest to 0.5, over 8,000 of 10,000 steps."""
    options = {"t_min_start": 0.98, "t_max_start": 0.98, "t_max_end": 0.5, "t_anneal_steps": 800}
    low, high = times(t_min=0.02, **options)
    np.testing.assert_allclose(low[jnp.array([0, 400, 800, 1000])], [0.98, 0.5, 0.02, 0.02], 1e-5)
    np.testing.assert_allclose(high[jnp.array([0, 400, 800, 1000])], [0.98, 0.74, 0.5, 0.5], 1e-5)


@pytest.mark.parametrize("name", ["linear", "hifa", "dreamtime"])
def test_one_time_a_step_never_rises_and_keeps_its_bounds(name):
    ends = {"t_min": 0.02, "t_max_start": 0.98, "t_max_end": 0.02}
    low, high = times(time_schedule=name, **ends)
    np.testing.assert_array_equal(low, high)
    assert np.all(np.diff(low) <= 1e-6)
    np.testing.assert_allclose([low[0], low[-1]], [0.98, 0.02], atol=0.15)
    assert low.min() >= 0.02 - 1e-6 and low.max() <= 0.98 + 1e-6


def test_hifa_is_a_square_root():
    low, _ = times(time_schedule="hifa", t_min=0.02, t_max_start=0.98)
    np.testing.assert_allclose(low[250], 0.98 - 0.96 * 0.5, rtol=1e-5)


def test_dreamtime_gives_each_time_its_weight():
    t, _ = times(20_001, time_schedule="dreamtime", t_min=1e-4, t_max_start=0.9999)
    shares, _ = np.histogram(t, bins=10, range=(0.0, 1.0))
    weight = dreamtime_weights(STABLE_DIFFUSION)
    bins = np.minimum((np.linspace(0, 1, len(weight)) * 10).astype(int), 9)
    expected = np.bincount(bins, weights=weight) / weight.sum()
    np.testing.assert_allclose(shares / len(t), expected, atol=5e-3)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'cosine' is not uniform"):
        times(2, time_schedule="cosine")
