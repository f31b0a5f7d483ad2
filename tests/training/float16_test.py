"""Diagnostics name float16 where a prior in it leaves its range."""

import jax.numpy as jnp
import pytest

from dreamfusion_jax.runs.diagnostics import write_diagnostics
from dreamfusion_jax.training.state import init_state


@pytest.mark.parametrize(("dtype", "suspected"), [(jnp.float16, True), (jnp.float32, False)])
def test_diagnostics_suspect_float16_only_where_it_is_used(dtype, suspected, make_config, make_run):
    config = make_config()
    run = make_run(config)
    state = init_state(run.scene, run.optimizer, 0)
    weights = {"unet": {"kernel": jnp.ones(3, dtype)}, "vae": {"kernel": jnp.ones(3, jnp.bfloat16)}}
    message = str(write_diagnostics(run.workdir, run.setup, state, weights, run.table, 1))
    assert (
        "computes in float16, and may have exceeded its largest number, 65504" in message
    ) == suspected
    assert "--prior_dtype=float32" in message
