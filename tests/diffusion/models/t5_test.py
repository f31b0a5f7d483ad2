"""Parity of T5's encoder with transformers', and the configs that it refuses."""

import jax
import numpy as np
import pytest
import torch
import transformers

from dreamfusion_jax.diffusion.loading.weights import check_params, params_from_torch
from dreamfusion_jax.diffusion.models.t5 import T5EncoderModel
from dreamfusion_jax.runtime.errors import PriorError
from tests.floyd import T5_XXL, TINY_T5


def parity_error(config, redraw, arrays, relative_error, length) -> float:
    """The error of one short text and one that fills the length."""
    oracle = redraw(transformers.T5EncoderModel(transformers.T5Config(**config)))
    model = T5EncoderModel.from_config(oracle.config.to_dict())
    tensors = arrays(oracle)
    del tensors["encoder.embed_tokens.weight"]  # tied
    params = params_from_torch(tensors)
    check_params(model, params, "the test")
    ids = np.random.default_rng(0).integers(0, model.vocab_size, (2, length))
    mask = np.arange(length) < np.array([[7], [length]])
    theirs = oracle(torch.from_numpy(ids), torch.from_numpy(mask.astype(int))).last_hidden_state
    ours = jax.jit(model.apply)({"params": params}, ids, mask)
    assert ours.shape == theirs.shape and theirs.std() > 0.1
    return relative_error(ours, theirs.numpy())


@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
def test_hidden_states_are_transformers(kind, redraw, arrays, relative_error):
    # Distances up to 39 meet buckets of one, of several and of all that are farther.
    few = {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20}
    config = TINY_T5 | few | {"feed_forward_proj": kind}
    assert parity_error(config, redraw, arrays, relative_error, 40) < 1e-4


@pytest.mark.slow
def test_two_layers_of_xxl_are_transformers(redraw, arrays, relative_error):
    config = T5_XXL | {"num_layers": 2, "vocab_size": 512}
    assert parity_error(config, redraw, arrays, relative_error, 77) < 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feed_forward_proj", "gated-silu"),
        ("num_layers", 0),
        ("relative_attention_num_buckets", 2),
        ("d_model", "wide"),
        ("num_heads", 2**30),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key, value):
    with pytest.raises(PriorError, match=key):
        T5EncoderModel.from_config(TINY_T5 | {key: value})
