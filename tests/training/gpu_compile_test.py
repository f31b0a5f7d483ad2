"""The training step compiles for an NVIDIA GPU that is not there: a small one, by JAX's plugin."""

import importlib.util

import pytest

from tests.ahead import report_of
from tests.gpu import PLUGIN

# In a process of its own, which keeps JAX on the CPU. The enlargement of half-size images and
# attention to an odd number of keys, both differentiated, are what XLA or JAX once refused.
COMPILE = """
import json
import jax
import jax.numpy as jnp
from conftest import SCENE
from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.diffusion.models.layers import dot_product_attention
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.training.options import TrainOptions
from tests import ahead, gpu, hlo

gpu.require_plugin()
train = TrainOptions(prompt="a cup", render_size=(8,), shading_start_step=0, half_size_steps=10)
compiled, graphs = gpu.compile_step(Config(scene=SCENE, train=train), ahead.SMALL, "h100")
text = compiled.program.as_text()
program = hlo.parse(text)
unlit, lit = (gpu.counts(hlo.kernels(program, n), gpu.GPUS["h100"].rates) for n in (-2, -1))


def attention(query, text):
    return jnp.sum(dot_product_attention(query, text, text, 2).astype(jnp.float32))


shapes = [jax.ShapeDtypeStruct((1, n, 32), jnp.bfloat16) for n in (64, 77)]
one = jax.sharding.SingleDeviceSharding(gpu.devices("l4")[0])
with compiling_for("gpu", 8.9):
    both = jax.jit(jax.grad(attention, (0, 1)), in_shardings=one, out_shardings=one)
    odd = both.lower(*shapes).compile().as_text()
print(json.dumps({
    "unlit": unlit,
    "lit": lit,
    "graphs": graphs._asdict(),
    "whole": gpu.whole(text),
    "alias_bytes": compiled.program.memory_analysis().alias_size_in_bytes,
    "scheduled": text.splitlines()[0],
    "odd": odd,
}))
"""


@pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason=f"{PLUGIN} is not installed")
def test_the_step_compiles_for_a_gpu_as_it_would_there():
    report = report_of(COMPILE)
    assert report["whole"] == {"f64": 0, "transfers": 0}
    assert report["unlit"]["attention"] > 0, "cuDNN's fused kernel"
    assert report["unlit"]["convolutions"] > 10
    assert report["unlit"]["roofline_ms"] < report["lit"]["roofline_ms"], "the normals' share"
    assert report["graphs"]["graphs"] > 0
    assert report["alias_bytes"] > 0, "the state is updated in place"
    assert "f16[" in report["scheduled"], "the U-Net's weights are in float16"
    assert report["odd"].count('custom_call_target="__cudnn$fmha') == 2, "forward and backward"
