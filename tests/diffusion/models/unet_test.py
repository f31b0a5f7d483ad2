"""Parity of the U-Net with diffusers', and the configs that it refuses."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from dreamfusion_jax.diffusion.loading.weights import check_params, params_from_torch
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.runtime.errors import PriorError

SMALL = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
CONFIGS = {
    # Stable Diffusion 1.x: 1x1 convolutions around the transformers, one number of heads.
    "sd1": {**SMALL, "attention_head_dim": 4, "layers_per_block": 2},
    # 2.x: linear projections, heads a block.
    "sd2": {
        **SMALL,
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "upcast_attention": True,
        "transformer_layers_per_block": 2,
    },
    "unusual": {
        **SMALL,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [1, 2, 4],
        "only_cross_attention": [False, True, False],
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "mid_block_scale_factor": 1.4,
        "norm_eps": 1e-3,
    },
    # Distilled: no mid block, transformers at every resolution, blocks of their own lengths.
    "tiny-sd": {
        **SMALL,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "layers_per_block": [1, 2],
        "attention_head_dim": 4,
        "mid_block_type": None,
    },
    # As SSD-1B and Vega: other numbers of transformers up than down, a mid block without.
    "ssd-1b": {
        **SMALL,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 1, 3], 1],
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parity(name, redraw, arrays, channels_first, channels_last, relative_error):
    oracle = redraw(diffusers.UNet2DConditionModel(**CONFIGS[name]))
    unet = UNet2DConditionModel.from_config(dict(oracle.config))
    params = params_from_torch(arrays(oracle))
    check_params(unet, params, "the test")
    draw = np.random.default_rng(0).standard_normal
    # An odd height is rounded up on the way down, and has to come back.
    sample = draw((2, 7, 8, unet.in_channels)).astype(np.float32)
    text = draw((2, 5, 12)).astype(np.float32)
    index = np.array([7, 801])

    def theirs(sample, index, text):
        arguments = channels_first(sample), torch.from_numpy(index), torch.from_numpy(text)
        return channels_last(oracle(*arguments).sample)

    ours = jax.jit(lambda *arguments: unet.apply({"params": params}, *arguments))
    base = theirs(sample, index, text)
    for changed in (
        (sample, index, text),
        (sample, index, text[::-1].copy()),
        (sample, index[::-1].copy(), text),
    ):
        theirs_now = theirs(*changed)
        assert relative_error(ours(*changed), theirs_now) < 1e-4
        if changed[1] is not index or changed[2] is not text:
            assert relative_error(theirs_now, base) > 1e-2


def test_bfloat16_arithmetic_is_close_and_keeps_float32_params(
    redraw, arrays, channels_first, channels_last, relative_error
):
    oracle = redraw(diffusers.UNet2DConditionModel(**CONFIGS["sd2"]))
    unet = UNet2DConditionModel.from_config(CONFIGS["sd2"], "bfloat16")
    draw = np.random.default_rng(0).standard_normal
    sample, text = draw((2, 8, 8, 4)).astype(np.float32), draw((2, 5, 12)).astype(np.float32)
    index = np.array([7, 801])
    params = params_from_torch(arrays(oracle))
    out = jax.jit(unet.apply)({"params": params}, sample, index, text)
    theirs = oracle(channels_first(sample), torch.from_numpy(index), torch.from_numpy(text))
    assert out.dtype == "bfloat16"
    assert 1e-4 < relative_error(np.float32(out), channels_last(theirs.sample)) < 5e-2
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *unet.dummy_inputs())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_embed_type", "timestep"),
        ("num_attention_heads", 4),
        ("act_fn", "mish"),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("layers_per_block", [1, 2, 2]),
        ("layers_per_block", [1, "2"]),
        ("mid_block_type", "UNetMidBlock"),
        ("mid_block_type", 1),
        ("transformer_layers_per_block", [1]),
        ("transformer_layers_per_block", [1, [1]]),
        ("transformer_layers_per_block", [1, [[1]]]),
        ("reverse_transformer_layers_per_block", [[1, 1, 1], 1]),
        ("reverse_transformer_layers_per_block", True),
        ("block_out_channels", [16, 32, 32]),
        ("an_option_of_tomorrow", 1),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key, value):
    with pytest.raises(PriorError, match=key):
        UNet2DConditionModel.from_config({**SMALL, key: value})
