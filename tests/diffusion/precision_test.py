"""Number formats: they keep the direction of guidance nearly, and the range always."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr
from safetensors.numpy import load_file, save_file

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.weights import load_module
from dreamfusion_jax.diffusion.models.layers import ResnetBlock2D
from dreamfusion_jax.diffusion.models.transformer import Transformer2DModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.runs import open_prior
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.runtime.errors import PriorError
from tests.benchmarks import prior_precision
from tests.benchmarks.prior_precision import PRODUCTS, Format

HIGH, HIGHEST = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST


def products(function, *arguments) -> list:
    """Returns the equations of all matrix products and convolutions in a function's jaxpr."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in PRODUCTS:
                yield eqn
            for inner in eqn.params.values():
                if isinstance(inner, ClosedJaxpr):
                    yield from walk(inner.jaxpr)

    return list(walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def precisions(function, *arguments) -> set:
    """Returns the precisions of a function's products."""
    return {eqn.params["precision"] for eqn in products(function, *arguments)}


@pytest.fixture(scope="module")
def inputs(loaded) -> dict:
    """Arguments of each function of the tiny pipeline's prior."""
    prior, params = loaded
    z, rgb = jnp.zeros((2, *prior.latent_shape)), jnp.zeros((2, 16, 16, 3))
    return {
        "predict": (params, z, jnp.array([0.3, 0.8]), prior.encode_text(["a", "b"])),
        "encode": (params, rgb, None),
        "decode": (params, z),
    }


@pytest.mark.parametrize("name", ["predict", "encode", "decode"])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_float32_networks_raise_an_accelerators_precision(name, platform, loaded, inputs):
    """At "high" a TPU adds three products of bfloat16 parts, a GPU rounds to TF32."""
    prior, _ = loaded
    with compiling_for(platform):
        assert precisions(getattr(prior, name), *inputs[name]) == {(HIGH, HIGH)}


@pytest.mark.parametrize("name", ["predict", "encode", "decode"])
def test_a_cpu_keeps_its_default_precision(name, loaded, inputs):
    prior, _ = loaded
    assert precisions(getattr(prior, name), *inputs[name]) == {None}


def test_half_precision_has_no_more_bits_to_multiply(pipeline_dir, inputs):
    prior, _ = load_prior(pipeline_dir, jnp.float16, jnp.bfloat16)
    with compiling_for("gpu"):
        for name, arguments in inputs.items():
            assert precisions(getattr(prior, name), *arguments) == {None}
        kinds = {
            v.aval.dtype for eqn in products(prior.predict, *inputs["predict"]) for v in eqn.invars
        }
    assert kinds >= {jnp.dtype("float16")} and jnp.dtype("bfloat16") not in kinds


def test_texts_are_encoded_in_float32_in_every_format(pipeline_dir, loaded):
    prompts = ["a red chair", ""]
    for dtype in (jnp.float16, jnp.bfloat16):
        half, _ = load_prior(pipeline_dir, dtype)
        tokens = half.encode_text(prompts).tokens
        expected = loaded[0].encode_text(prompts).tokens
        assert tokens.dtype == jnp.float32
        np.testing.assert_array_equal(tokens, expected)
    with compiling_for("tpu"):
        assert precisions(lambda: half.encode_text(prompts)) == {(HIGHEST, HIGHEST)}


@pytest.fixture
def corrupted_unet(pipeline_dir, tmp_path):
    """Writes a U-Net with one number replaced, in a tensor whose name it returns; its folder."""
    folder = Path(shutil.copytree(pipeline_dir / "unet", tmp_path / "unet"))

    def corrupt(number: float) -> tuple[Path, str]:
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        tensors["conv_in.bias"][3] = number
        save_file(tensors, path, metadata={"format": "pt"})
        return folder, "conv_in.bias"

    return corrupt


def test_weights_beyond_float16_end_in_one_sentence(corrupted_unet):
    folder, name = corrupted_unet(-7e4)
    for dtype in (jnp.float32, jnp.bfloat16):
        load_module(folder, UNet2DConditionModel, dtype)
    with pytest.raises(PriorError) as error:
        load_module(folder, UNet2DConditionModel, jnp.float16)
    message = str(error.value)
    assert message.startswith(str(folder)) and name in message and "65504" in message
    assert "--" not in message and message.count("\n") == 0


def test_the_flag_that_mends_weights_beyond_float16_is_named(corrupted_unet, monkeypatch):
    folder, _ = corrupted_unet(-7e4)
    monkeypatch.setattr(open_prior, "resolve_model", lambda *_: folder)
    load = lambda *_: load_module(folder, UNet2DConditionModel, jnp.float16)  # noqa: E731
    monkeypatch.setattr(open_prior, "load_prior", load)
    with pytest.raises(PriorError, match="float16 ends. Give --prior_dtype=float32"):
        open_prior.open_prior(PriorOptions(prior=str(folder)))


@pytest.mark.parametrize("number", [65504.0, np.inf, np.nan])
def test_numbers_infinite_in_the_file_are_no_error(number, corrupted_unet):
    folder, _ = corrupted_unet(number)
    _, params = load_module(folder, UNet2DConditionModel, jnp.float16)
    np.testing.assert_equal(params["conv_in"]["bias"][3], np.float16(number))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_residual_sums_stay_in_the_format_that_they_came_in(dtype):
    """60,000 and 60,000 are within float16's range, their sum is not."""
    x = jnp.full((1, 4, 4, 8), 6e4)
    block = ResnetBlock2D(8, 2, 1e-5, dtype=dtype)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    params["conv2"]["bias"] += 6e4
    out = jax.jit(block.apply)({"params": params}, x)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, 1.2e5, rtol=3e-3)

    text, transformer = jnp.ones((1, 3, 5)), Transformer2DModel(2, 1, 2, False, False, dtype)
    for kind in (jnp.float32, dtype):
        arguments = jax.random.key(0), x.astype(kind), text
        out, _ = jax.eval_shape(transformer.init_with_output, *arguments)
        assert out.dtype == kind


# As deep in kinds of blocks as Stable Diffusion's, narrow, and with random weights.
SMALL_UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 8,
}


def test_float16_keeps_guidance_direction_bfloat16_does_not():
    """Where text changes 3 % of the noise, float16 is off by less than 6 % of that change.

    The U-Net of Stable Diffusion 1.5 itself: see tests/benchmarks/prior_precision.py.
    """
    network = prior_precision.random(SMALL_UNET, side=8)
    predict = prior_precision.predictor(network, Format())
    subject = prior_precision.at_ratio(predict, network, 0.03)
    truth = prior_precision.with_and_without(predict, subject)
    np.testing.assert_allclose(prior_precision.ratio_of(truth), 0.03, rtol=1e-2)

    def share(dtype) -> np.ndarray:
        half = prior_precision.predictor(network, Format(dtype))
        noise = prior_precision.with_and_without(half, subject)
        return prior_precision.errors(noise, truth).share

    assert share(jnp.float16).max() < 0.06
    assert share(jnp.bfloat16).min() > 0.12
