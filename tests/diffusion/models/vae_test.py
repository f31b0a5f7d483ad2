"""Parity of the autoencoder with diffusers', old names of weights included."""

from functools import partial

import diffusers
import jax
import numpy as np
import pytest

from dreamfusion_jax.diffusion.loading.names import params_from_torch, upgrade_legacy_keys
from dreamfusion_jax.diffusion.loading.weights import check_params
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.runtime.device import compiling_for
from dreamfusion_jax.runtime.errors import PriorError

SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}
CONFIGS = {
    "sd": SMALL,
    "three blocks, two layers": {
        **SMALL,
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 2,
        "latent_channels": 3,
    },
    "no quantizing convolutions": {
        **SMALL,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "no attention": {**SMALL, "mid_block_add_attention": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parity(name, redraw, arrays, channels_first, channels_last, relative_error):
    oracle = redraw(diffusers.AutoencoderKL(**CONFIGS[name]))
    vae = AutoencoderKL.from_config(dict(oracle.config))
    params = params_from_torch(arrays(oracle))
    check_params(vae, params, "the test")
    rgb = np.random.default_rng(0).uniform(-1, 1, (2, 12, 16, 3)).astype(np.float32)

    theirs = oracle.encode(channels_first(rgb)).latent_dist
    encode, decode = (jax.jit(partial(vae.apply, method=name)) for name in ("encode", "decode"))
    mean, log_variance = encode({"params": params}, rgb)
    assert relative_error(mean, channels_last(theirs.mean)) < 1e-4
    assert relative_error(log_variance, channels_last(theirs.logvar)) < 1e-4
    decoded = decode({"params": params}, mean)
    assert relative_error(decoded, channels_last(oracle.decode(theirs.mean).sample)) < 1e-4
    assert decoded.shape == rgb.shape


@pytest.mark.parametrize("bias, bound", [(1e3, 20.0), (-1e3, -30.0)])
def test_log_variance_is_clipped(bias, bound, redraw, arrays):
    vae = AutoencoderKL.from_config(SMALL)
    encode = jax.jit(partial(vae.apply, method="encode"))
    params = params_from_torch(arrays(redraw(diffusers.AutoencoderKL(**SMALL))))
    params["quant_conv"]["bias"] = np.full(8, bias, np.float32)
    mean, log_variance = encode({"params": params}, np.zeros((1, 8, 8, 3), np.float32))
    assert np.all(np.asarray(log_variance) == bound)
    assert np.all(np.abs(mean) > 500)


@pytest.mark.parametrize("convolutional", [False, True])
def test_attention_names_of_old_files_are_understood(convolutional, redraw, arrays):
    tensors = arrays(redraw(diffusers.AutoencoderKL(**SMALL)))
    legacy = {}
    for name, tensor in tensors.items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(f".{new}.", f".{old}.")
        name = name.replace(".to_out.0.", ".proj_attn.")
        if convolutional and ".attentions." in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        legacy[name] = tensor
    assert legacy.keys() != tensors.keys()
    modern = upgrade_legacy_keys(legacy)
    assert modern.keys() == tensors.keys()
    assert all(np.array_equal(modern[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 2),
        ("shift_factor", 0.1),
        ("block_out_channels", [8]),
        ("an_option_of_tomorrow", 1),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key, value):
    with pytest.raises(PriorError, match=key):
        AutoencoderKL.from_config({**SMALL, key: value})


@pytest.mark.parametrize(
    ("name", "memory", "recomputed"),
    [("gpu", 80 * 10**9, False), ("gpu", 8 * 10**9, True), ("gpu", 0, True), ("cpu", 0, True)],
)
def test_large_maps_are_recomputed_unless_a_gpu_can_keep_them(name, memory, recomputed):
    """Of Stable Diffusion's encoder at 512 pixels, as a shape alone."""
    options = {"block_out_channels": [128, 8], "layers_per_block": 1, "norm_num_groups": 4}
    vae = AutoencoderKL.from_config(SMALL | options)
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), np.float32)
    encode = partial(vae.apply, method="encode")
    with compiling_for(name, 9.0, memory):
        params = jax.eval_shape(vae.init, jax.random.key(0), *vae.dummy_inputs())
        program = jax.make_jaxpr(encode)(params, image)
    assert ("checkpoint" in str(program) or "remat" in str(program)) == recomputed
