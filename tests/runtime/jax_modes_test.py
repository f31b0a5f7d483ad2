"""JAX's process-wide modes change no number, and the caller's own are kept."""

import contextlib
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest

from dreamfusion_jax import Asset, text_to_3d
from dreamfusion_jax.runs.checkpoint import load_run
from dreamfusion_jax.runtime import jax_modes
from dreamfusion_jax.runtime.errors import RunError

TINY = {"field": "image", "image_size": 8, "steps": 3, "preview_size": 8}
MODES = {
    "enable_x64": True,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "transfer_guard": "disallow",
    "disable_jit": True,
}


@pytest.fixture(scope="module")
def plain(tiny_prior, tmp_path_factory):
    """The state of a run under no mode."""
    workdir = tmp_path_factory.mktemp("plain")
    return text_to_3d("a red chair", tiny_prior, workdir=workdir, **TINY).saved.state


def test_the_api_ignores_the_modes_of_its_caller(plain, tiny_prior, tmp_path):
    with contextlib.ExitStack() as stack:
        for name, value in MODES.items():
            stack.enter_context(getattr(jax, name)(value))
        asset = text_to_3d("a red chair", tiny_prior, workdir=tmp_path, **TINY)
        loaded = Asset.load(tmp_path)
        asset.render(size=8)
        assert all(getattr(jax.config, f"jax_{name}") == value for name, value in MODES.items())
    chex.assert_trees_all_equal(asset.saved.state, plain)
    chex.assert_trees_all_equal(loaded.saved.state, plain)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    "variables",
    [
        {
            "JAX_ENABLE_X64": "1",
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "JAX_DISABLE_JIT": "1",
            "JAX_TRANSFER_GUARD": "disallow",
        },
        pytest.param({"JAX_DEBUG_NANS": "1"}, marks=pytest.mark.slow),
    ],
    ids=["modes", "debug_nans"],
)
def test_a_command_ignores_the_variables_of_jax(variables, plain, tiny_prior, tmp_path):
    settings = [f"--{name}={value}" for name, value in TINY.items()]
    command = [sys.executable, "-m", "dreamfusion_jax.main", "--prompt=a red chair", *settings]
    command += [f"--prior={tiny_prior}", f"--workdir={tmp_path}", "--compilation_cache=none"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("JAX_DISABLE_JIT has no effect" in done.stderr) == ("JAX_DISABLE_JIT" in variables)
    chex.assert_trees_all_equal(load_run(tmp_path).state, plain)


def test_debug_nans_is_named_where_it_stops_the_program():
    with (
        jax.debug_nans(True),
        pytest.raises(RunError, match="JAX_DEBUG_NANS stopped the program .*: unset it"),
        jax_modes.name_debug_nans(),
    ):
        jnp.log(-jnp.ones(2)).block_until_ready()
