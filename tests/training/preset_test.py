"""Every preset's scene lives through its first steps: neither fog nor nothing, and still learning.

On the embedded prior, small renders, guidance and everything else as the preset has it. Light
begins early, so that both kinds of views are met.
"""

import functools

import numpy as np
import pytest
from absl import flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs import loop
from dreamfusion_jax.toybox.view_scheme import SCHEMES
from tests.benchmarks import preset as benchmark

# Fewer rows, samples and views than the presets have, for time alone.
_SMALL = (
    *("--hash_log2_rows=14", "--proposal_samples=24", "--fine_samples=12"),
    "--views_per_device=1",
)


@functools.cache
def _prepared(name):
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    small = () if name == "toybox" else _SMALL
    configs.parse_flags(["program", f"--preset={name}", "--prior=toybox", *small], values)
    given = {"prompt": "a red chair", "variant": "", "view_words": "toybox"}
    config = configs.config_from_flags(values, **given)
    return config, loop.prepare(config, SCHEMES)


def _check_alive(name, seed, size, steps):
    config, run = _prepared(name)
    config = benchmark.short_config(config, size, lit_from=2 * steps // 3, seed=seed)
    seen = benchmark.observe(config, run, steps, image_size=24)
    assert seen.skipped == 0
    assert 0.03 < seen.mean < 0.8, seen.opacity
    assert seen.border < 0.5
    assert np.mean(seen.gradient[-10:]) > 1.0, seen.gradient


# `if` has the field of `sd`, and `refine` starts from a scene that is there.
_LATER = ("if", "mvdream", "refine")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in _LATER else n for n in configs.PRESETS],
)
def test_a_presets_scene_is_alive_after_its_first_steps(name):
    _check_alive(name, seed=0, size=12, steps=30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", configs.PRESETS)
def test_a_presets_scene_is_alive_after_150_steps(name, seed):
    _check_alive(name, seed, size=32, steps=150)


def test_an_adam_step_moves_no_presets_raw_density_far():
    """At 1e-2 the residual MLP's moves by 10 in ten steps, and its density saturates."""
    changes = {}
    for name in configs.PRESETS.keys() - {"refine"}:  # which holds its geometry, a distance
        config, run = _prepared(name)
        changes[name] = benchmark.raw_change(config, run.scene)
    assert all(0.01 < change < 4.0 for change in changes.values()), changes
