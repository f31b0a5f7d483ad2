"""Parity of CLIP with transformers'."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers

from dreamfusion_jax.diffusion.loading.names import params_from_torch, upgrade_legacy_keys
from dreamfusion_jax.diffusion.loading.weights import check_params
from dreamfusion_jax.diffusion.models.clip import CLIPModel, CLIPTextModel, CLIPVisionModel
from dreamfusion_jax.runtime.errors import PriorError

END = 49
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 8,
    "bos_token_id": 48,
    "eos_token_id": END,
    "pad_token_id": END,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
}
# The end token is found as the first of its kind, wherever the padding repeats it.
IDS = np.array([[48, 3, 9, END, END, END], [48, 3, 9, 8, 8, END]])


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        # Old configs: 2 is not the end token, and the largest id marks the end instead.
        {"hidden_act": "quick_gelu", "eos_token_id": 2},
    ],
)
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_parity(options, prefix, redraw, arrays, relative_error):
    config = transformers.CLIPTextConfig(**{**TEXT, **options})
    oracle = redraw(transformers.CLIPTextModel(config))
    model = CLIPTextModel.from_config(oracle.config.to_dict())
    saved = {prefix + name: tensor for name, tensor in arrays(oracle).items()}
    saved[f"{prefix}embeddings.position_ids"] = np.arange(8)[None]
    params = params_from_torch(upgrade_legacy_keys(saved))
    check_params(model, params, "the test")
    theirs = oracle(torch.from_numpy(IDS), output_hidden_states=True)
    apply = jax.jit(model.apply)
    ours = apply({"params": params}, IDS)
    assert relative_error(ours.last, theirs.last_hidden_state.numpy()) < 1e-4
    assert relative_error(ours.pooled, theirs.pooler_output.numpy()) < 1e-4
    assert relative_error(ours.penultimate, theirs.hidden_states[-2].numpy()) < 1e-4
    changed = IDS.copy()
    changed[:, 1] = 17
    other = apply({"params": params}, changed)
    assert relative_error(other.pooled, np.asarray(ours.pooled)) > 1e-2


def test_legacy_pooling_takes_the_largest_id():
    config = {**TEXT, "eos_token_id": 2}
    model = CLIPTextModel.from_config(config)
    ids = np.array([[48, 2, 5, 30, 49, 3]])
    states, _ = jax.jit(model.init_with_output)(jax.random.key(0), ids)
    assert np.array_equal(states.pooled[0], states.last[0, 4])


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_both_towers_parity(hidden_act, redraw, arrays, channels_first, relative_error):
    config = transformers.CLIPConfig(
        text_config={**TEXT, "hidden_act": hidden_act},
        vision_config={**VISION, "hidden_act": hidden_act},
        projection_dim=10,
    )
    oracle = redraw(transformers.CLIPModel(config))
    model = CLIPModel.from_config(oracle.config.to_dict())
    params = params_from_torch(upgrade_legacy_keys(arrays(oracle)))
    check_params(model, params, "the test")
    pixels = np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32)
    theirs = oracle(torch.from_numpy(IDS), channels_first(pixels))
    variables = {"params": params}
    image = jax.jit(partial(model.apply, method="image_embeds"))(variables, pixels)
    text = jax.jit(partial(model.apply, method="text_embeds"))(variables, IDS)
    assert relative_error(image, theirs.image_embeds.numpy()) < 1e-4
    assert relative_error(text, theirs.text_embeds.numpy()) < 1e-4
    logits = jax.jit(model.apply)(variables, pixels, IDS)
    assert relative_error(logits, theirs.logits_per_image.numpy()) < 1e-4
    assert relative_error(text[::-1], np.asarray(text)) > 1e-2
    assert relative_error(image[::-1], np.asarray(image)) > 1e-2


def test_vision_parity(redraw, arrays, channels_first, relative_error):
    oracle = redraw(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)))
    model = CLIPVisionModel.from_config(oracle.config.to_dict())
    params = params_from_torch(upgrade_legacy_keys(arrays(oracle)))
    check_params(model, params, "the test")
    pixels = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    theirs = oracle(channels_first(pixels)).pooler_output.numpy()
    assert relative_error(jax.jit(model.apply)({"params": params}, pixels), theirs) < 1e-4


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "gelu_new"), ("eos_token_id", [2, 3]), ("image_size", [8, 9])]
)
def test_what_is_not_implemented_is_refused_by_name(key, value):
    module = CLIPVisionModel if key == "image_size" else CLIPTextModel
    with pytest.raises(PriorError, match=key):
        module.from_config({key: value})
