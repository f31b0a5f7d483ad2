"""Parity of DeepFloyd IF's U-Net with diffusers', and the configs that it refuses."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from dreamfusion_jax.diffusion.loading.weights import (
    check_params,
    params_from_torch,
    params_to_torch,
)
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.runtime.errors import PriorError
from tests.floyd import IF_M, TINY_UNET

CONFIGS = {
    "three levels": TINY_UNET
    | {
        "block_out_channels": [16, 32, 48],
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"],
    },
    # The text alone is attended to, unprojected and unnormalized; the time is added.
    "unusual": TINY_UNET
    | {
        "attention_head_dim": [4, 16],
        "act_fn": "silu",
        "cross_attention_norm": None,
        "encoder_hid_dim": None,
        "cross_attention_dim": 24,
        "mid_block_scale_factor": 1.4,
        "only_cross_attention": True,
        "resnet_time_scale_shift": "default",
    },
    # Later spellings, and blocks of both makes in one network.
    "mixed": TINY_UNET
    | {
        "addition_embed_type": None,
        "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"],
        "encoder_hid_dim_type": "text_proj",
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
}


def networks(config, redraw, arrays):
    """diffusers' network and ours with the same weights: functions of sample, index and text."""
    oracle = redraw(diffusers.UNet2DConditionModel(**config))
    unet = UNet2DConditionModel.from_config(config)
    params = params_from_torch(arrays(oracle))
    check_params(unet, params, "the test")
    back = params_to_torch(params)
    assert back.keys() == oracle.state_dict().keys()

    def theirs(sample, index, text):
        sample = torch.from_numpy(sample).permute(0, 3, 1, 2)
        out = oracle(sample, torch.from_numpy(index), torch.from_numpy(text)).sample
        return out.permute(0, 2, 3, 1).numpy()

    return theirs, jax.jit(lambda *inputs: unet.apply({"params": params}, *inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_predictions_are_diffusers(name, redraw, arrays, relative_error):
    theirs, ours = networks(CONFIGS[name], redraw, arrays)
    draw = np.random.default_rng(0).standard_normal
    sample, text = draw((2, 8, 8, 3)).astype(np.float32), draw((2, 5, 24)).astype(np.float32)
    index = np.array([7, 801])
    base = theirs(sample, index, text)
    assert base.shape == (2, 8, 8, 6)
    assert relative_error(ours(sample, index, text), base) < 1e-4
    for changed in ((sample, index, text[::-1].copy()), (sample, index[::-1].copy(), text)):
        expected = theirs(*changed)
        assert relative_error(ours(*changed), expected) < 1e-4
        assert relative_error(expected, base) > 1e-2


@pytest.mark.slow
def test_predictions_are_diffusers_at_the_full_width_of_m(redraw, arrays, relative_error):
    theirs, ours = networks(IF_M, redraw, arrays)
    draw = np.random.default_rng(0).standard_normal
    sample, text = draw((1, 64, 64, 3)).astype(np.float32), draw((1, 77, 4096)).astype(np.float32)
    inputs = sample, np.array([501]), text
    assert relative_error(ours(*inputs), theirs(*inputs)) < 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "mish"),
        ("mid_block_type", "UNetMidBlock1D"),
        ("encoder_hid_dim_type", "image_proj"),
        ("encoder_hid_dim", "4096"),
        ("encoder_hid_dim", 0),
        ("addition_embed_type", "text_image"),
        ("addition_embed_type_num_heads", 7),
        ("resnet_time_scale_shift", "spatial"),
        ("cross_attention_norm", "layer_norm"),
        ("cross_attention_dim", 33),
        ("attention_head_dim", 9),
        ("class_embed_type", "timestep"),
        ("resnet_skip_time_act", True),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key, value):
    with pytest.raises(PriorError, match=key):
        UNet2DConditionModel.from_config(TINY_UNET | {key: value})
