"""Parity at full size: the configurations of Stable Diffusion 1.5 and 2.1, and of the first CLIPs.

The weights are random, as everywhere in the tests: what is compared is the arithmetic, at the real
widths, depths and numbers of heads. Latents are a quarter or half as wide as the real ones.
"""

from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dreamfusion_jax.diffusion.loading.names import params_from_torch, upgrade_legacy_keys
from dreamfusion_jax.diffusion.loading.weights import check_params
from dreamfusion_jax.diffusion.models.clip import CLIPModel, CLIPTextModel
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from tests.pipelines import (
    CLIP_B16,
    CLIP_B32,
    CLIP_L14,
    SD15_UNET,
    SD21_UNET,
    VAE,
    VIT_H,
    VIT_L,
)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SD15_UNET, SD21_UNET], ids=["1.5", "2.1"])
def test_unet(config, redraw, arrays, channels_first, channels_last, relative_error):
    oracle = redraw(diffusers.UNet2DConditionModel(**config))
    unet = UNet2DConditionModel.from_config(dict(oracle.config))
    params = params_from_torch(arrays(oracle))
    check_params(unet, params, "the test")
    draw = np.random.default_rng(0).standard_normal
    sample = draw((1, 16, 16, 4)).astype(np.float32)
    text = draw((1, 77, unet.cross_attention_dim)).astype(np.float32)
    index = np.array([501])
    theirs = oracle(channels_first(sample), torch.from_numpy(index), torch.from_numpy(text)).sample
    ours = jax.jit(unet.apply)({"params": params}, sample, index, text)
    assert relative_error(ours, channels_last(theirs)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("config", [SD15_UNET, SD21_UNET], ids=["1.5", "2.1"])
def test_unet_in_bfloat16(config, relative_error, record_property):
    """Half precision in weights and arithmetic against float32, both ours."""
    unet = UNet2DConditionModel.from_config(config)
    params = jax.jit(unet.init)(jax.random.key(0), *unet.dummy_inputs())
    draw = np.random.default_rng(0).standard_normal
    sample, index = draw((1, 32, 32, 4)).astype(np.float32), np.array([501])
    text = draw((1, 77, unet.cross_attention_dim)).astype(np.float32)
    whole = np.asarray(jax.jit(unet.apply)(params, sample, index, text))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    unet = UNet2DConditionModel.from_config(config, jnp.bfloat16)
    error = relative_error(np.float32(jax.jit(unet.apply)(half, sample, index, text)), whole)
    record_property("bfloat16_error", error)
    print(f"bfloat16 against float32: {error:.2e}")
    assert error < 3e-2


def test_vae(redraw, arrays, channels_first, channels_last, relative_error):
    oracle = redraw(diffusers.AutoencoderKL(**VAE))
    vae = AutoencoderKL.from_config(dict(oracle.config))
    params = {"params": params_from_torch(upgrade_legacy_keys(arrays(oracle)))}
    check_params(vae, params["params"], "the test")
    rgb = np.random.default_rng(0).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
    theirs = oracle.encode(channels_first(rgb)).latent_dist
    encode, decode = (jax.jit(partial(vae.apply, method=name)) for name in ("encode", "decode"))
    mean, log_variance = encode(params, rgb)
    assert relative_error(mean, channels_last(theirs.mean)) < 1e-4
    assert relative_error(log_variance, channels_last(theirs.logvar)) < 1e-4
    decoded = decode(params, channels_last(theirs.mean))
    assert relative_error(decoded, channels_last(oracle.decode(theirs.mean).sample)) < 1e-4


@pytest.mark.parametrize(
    "config", [VIT_L, pytest.param(VIT_H, marks=pytest.mark.slow)], ids=["ViT-L", "ViT-H"]
)
def test_text_encoder(config, redraw, arrays, relative_error):
    oracle = redraw(transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)))
    model = CLIPTextModel.from_config(oracle.config.to_dict())
    params = params_from_torch(upgrade_legacy_keys(arrays(oracle)))
    check_params(model, params, "the test")
    ids = np.random.default_rng(0).integers(0, 49400, (2, 77))
    ids[:, 0], ids[0, 9:], ids[1, 40:] = 49406, 49407, 49407
    theirs = oracle(torch.from_numpy(ids)).last_hidden_state.numpy()
    ours = jax.jit(model.apply)({"params": params}, ids).last
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("config", [CLIP_B32, CLIP_B16, CLIP_L14], ids=["B/32", "B/16", "L/14"])
def test_clip(config, redraw, arrays, channels_first, relative_error):
    oracle = redraw(transformers.CLIPModel(transformers.CLIPConfig(**config)))
    model = CLIPModel.from_config(oracle.config.to_dict())
    params = params_from_torch(upgrade_legacy_keys(arrays(oracle)))
    check_params(model, params, "the test")
    pixels = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
    ids = np.random.default_rng(0).integers(0, 49400, (2, 77))
    ids[:, 0], ids[0, 9:], ids[1, 40:] = 49406, 49407, 49407
    theirs = oracle(torch.from_numpy(ids), channels_first(pixels))
    variables = {"params": params}

    @jax.jit
    def ours(variables):
        embeds = [
            model.apply(variables, inputs, method=method)
            for inputs, method in ((pixels, "image_embeds"), (ids, "text_embeds"))
        ]
        return *embeds, model.apply(variables, pixels, ids)

    names = ("image_embeds", "text_embeds", "logits_per_image")
    for name, embeds in zip(names, ours(variables), strict=True):
        assert relative_error(embeds, getattr(theirs, name).numpy()) < 1e-4, name
