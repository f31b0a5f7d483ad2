"""The step compiles for a TPU, and comes out as one: a small one, on libtpu's compiler, no TPU."""

import importlib.util
import re

import pytest

from tests.ahead import report_of

# In a process of its own: JAX must stay on the CPU while libtpu is loaded. Its 9,600 points are two
# blocks of rays for a CPU, one for a TPU.
COMPILE = """
import json, sys
import jax
from conftest import SCENE
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.state import build_scene
from tests import ahead, tpu

tpu.require_libtpu()
train = TrainOptions(prompt="a cup", render_size=(40,), shading_start_step=0)
compiled = tpu.compile_step(Config(scene=SCENE, train=train), ahead.SMALL, "v5e:2x2")
params = jax.eval_shape(build_scene(SCENE).init, jax.random.key(0))
print(json.dumps({
    **tpu.counts(compiled.program),
    "devices": compiled.devices,
    "parameter_bytes": 4 * sum(leaf.size for leaf in jax.tree.leaves(params)),
    "alias_bytes": compiled.program.memory_analysis().alias_size_in_bytes,
    "hlo": compiled.program.as_text(),
}))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_step_compiles_for_a_tpu_as_it_would_there():
    report = report_of(COMPILE)
    assert report["devices"] == 4
    # Between the devices goes the gradient, and a few scalars.
    assert 0 <= report["collective_bytes"] - report["parameter_bytes"] < 256
    # Parameters and both moments are updated in place.
    assert report["alias_bytes"] >= 3 * report["parameter_bytes"]
    assert report["hbm_bytes"] > report["argument_bytes"]
    assert "bf16[" in report["hlo"].splitlines()[0], "the autoencoder's weights are in bfloat16"
    products = re.findall(r".* (?:convolution|dot)\(.*", report["hlo"])
    unets = [line for line in products if "UNet2DConditionModel" in line]
    assert len(unets) > 50, "products of the U-Net"
    for line in unets:
        assert "operand_precision={high,high}" in line, "three products of bfloat16 parts"
    assert " sort(" not in report["hlo"], "all rays are one block"
