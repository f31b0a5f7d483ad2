"""LoRA files of every naming, merged as diffusers merges them, and those that are refused."""

import importlib.util
import json
import re
from pathlib import Path

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreamfusion_jax.diffusion.loading.lora_files import Lora, parse_lora
from dreamfusion_jax.diffusion.loading.names import params_to_torch
from dreamfusion_jax.diffusion.loading.parts import Additions
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.runtime.errors import PriorError

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
PROJECTION, CONVOLUTION = "down_blocks.0.attentions.0.proj_in", "up_blocks.0.resnets.1.conv1"
UNET = (ATTENTION, OUT, "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", PROJECTION)
TEXT = ("encoder.layers.1.self_attn.out_proj", "encoder.layers.0.mlp.fc1")
RANK = 2


@pytest.fixture(scope="module")
def weights(pipeline_dir) -> dict[str, np.ndarray]:
    """The pipeline's weights, named "unet.x" and "text_encoder.x" as in a LoRA's names."""
    unet = load_file(pipeline_dir / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(pipeline_dir / "text_encoder" / "model.safetensors")
    found = {f"unet.{name}": tensor for name, tensor in unet.items()}
    names = {name: name.removeprefix("text_model.") for name in text}
    return found | {f"text_encoder.text_model.{names[name]}": text[name] for name in text}


def drawn(weights, modules, seed=0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws the factors (down, up) of each module's update, as large as its weights."""
    rng, factors = np.random.default_rng(seed), {}
    for module in modules:
        shape = weights[f"{module}.weight"].shape
        tail = (1,) * (len(shape) - 2)
        down = rng.standard_normal((RANK, *shape[1:])).astype(np.float32)
        up = rng.standard_normal((shape[0], RANK, *tail)).astype(np.float32)
        factors[module] = 0.3 * down, 0.3 * up
    return factors


def full_names(unet=UNET, text=TEXT):
    names = [f"unet.{name}" for name in unet]
    return [*names, *(f"text_encoder.text_model.{name}" for name in text)]


def peft(factors):
    return {
        f"{module}.lora_{'AB'[i]}.weight": pair[i]
        for module, pair in factors.items()
        for i in (0, 1)
    }


def kohya(factors, alpha=1.0):
    tensors = {}
    for module, (down, up) in factors.items():
        network, _, name = module.partition(".")
        short = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network]
        stem = short + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)
    return tensors


def processors(factors):
    """The first names, of attention alone: "...attn1.processor.to_q_lora.down.weight"."""
    tensors, text = {}, {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out"}
    for module, pair in factors.items():
        stem = re.sub(r"\.(to_\w+?)(\.0)?$", r".processor.\1_lora", module)
        stem = re.sub(r"\.(\w+)_proj$", lambda m: f".{text[m[1]]}_lora", stem)
        tensors |= {f"{stem}.{way}.weight": pair[i] for i, way in enumerate(("down", "up"))}
    return tensors


def merged(weights, factors, scale):
    """W + scale up down, of matrices and of convolutions."""
    changed = dict(weights)
    for module, (down, up) in factors.items():
        product = np.einsum("or,ri->oi", up.reshape(len(up), -1), down.reshape(len(down), -1))
        name = f"{module}.weight"
        changed[name] = weights[name] + scale * product.reshape(weights[name].shape)
    return changed


NAMINGS = {"peft": (peft, 1.0), "kohya": (kohya, 1.0 / RANK), "processors": (processors, 1.0)}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_merged_by_the_formula(naming, weights, pipeline_dir, tmp_path):
    write, own_scale = NAMINGS[naming]
    attention = ((ATTENTION, OUT), TEXT[:1])
    modules = full_names(*attention) if naming == "processors" else full_names((*UNET, CONVOLUTION))
    factors = drawn(weights, modules)
    save_file(write(factors), tmp_path / "a.safetensors")
    _, params = load_prior(
        pipeline_dir, additions=Additions([Lora(tmp_path / "a.safetensors", 0.7)])
    )
    expected = merged(weights, factors, 0.7 * own_scale)
    for name, tensor in params_to_torch(params["unet"]).items():
        np.testing.assert_allclose(tensor, expected[f"unet.{name}"], rtol=1e-5, atol=1e-6)
    _, plain = load_prior(pipeline_dir)
    chex.assert_trees_all_equal(params["vae"], plain["vae"])


def test_several_files_add_up_and_the_text_encoder_is_updated(weights, pipeline_dir, tmp_path):
    import torch
    from diffusers import StableDiffusionPipeline

    first, second = (drawn(weights, full_names(), seed) for seed in (0, 1))
    save_file(peft(first), tmp_path / "a.safetensors")
    save_file(kohya(second, 3.0), tmp_path / "b.safetensors")
    loras = [Lora(tmp_path / "a.safetensors", 0.5), Lora(tmp_path / "b.safetensors", -0.4)]
    prior, params = load_prior(pipeline_dir, additions=Additions(loras))
    expected = merged(merged(weights, first, 0.5), second, -0.4 * 3.0 / RANK)
    name = f"{ATTENTION}.weight"
    ours = params_to_torch(params["unet"])[name]
    np.testing.assert_allclose(ours, expected[f"unet.{name}"], rtol=1e-5, atol=1e-6)
    oracle = StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None)
    held = oracle.text_encoder.state_dict()
    for name in held:
        key = f"text_encoder.text_model.{name.removeprefix('text_model.')}"
        held[name] = torch.from_numpy(np.array(expected[key]))
    oracle.text_encoder.load_state_dict(held)
    theirs = oracle.encode_prompt(["a red chair"], "cpu", 1, False)[0].numpy()
    np.testing.assert_allclose(prior.encode_text(["a red chair"]).tokens, theirs, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="pip install peft")
@pytest.mark.parametrize("naming", NAMINGS)
def test_merged_weights_are_those_that_diffusers_fuses(naming, weights, pipeline_dir, tmp_path):
    from diffusers import StableDiffusionPipeline

    write = NAMINGS[naming][0]
    unet = UNET if naming == "peft" else (ATTENTION, OUT)
    factors = drawn(weights, full_names(unet, TEXT[:1]))
    save_file(write(factors), tmp_path / "a.safetensors")
    oracle = StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None)
    oracle.load_lora_weights(tmp_path, weight_name="a.safetensors")
    oracle.fuse_lora(lora_scale=0.7)
    oracle.unload_lora_weights()
    prior, params = load_prior(
        pipeline_dir, additions=Additions([Lora(tmp_path / "a.safetensors", 0.7)])
    )
    theirs = {name: tensor.numpy() for name, tensor in oracle.unet.state_dict().items()}
    for name, tensor in params_to_torch(params["unet"]).items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    tokens = oracle.encode_prompt(["a red chair"], "cpu", 1, False)[0].numpy()
    np.testing.assert_allclose(prior.encode_text(["a red chair"]).tokens, tokens, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"unet.lora_alpha": 3, "unet.r": RANK}, 3 / RANK),
        ({"unet.lora_alpha": 3, "unet.alpha_pattern": {"attn1.to_q": 5}}, 5 / RANK),
        ({"unet.lora_alpha": 3, "unet.use_rslora": True}, 3 / RANK**0.5),
    ],
)
def test_a_configuration_in_the_header_gives_the_alpha(
    config, factor, weights, pipeline_dir, tmp_path
):
    factors = drawn(weights, full_names((ATTENTION,), ()))
    path, metadata = tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)}
    save_file(peft(factors), path, metadata)
    _, params = load_prior(pipeline_dir, additions=Additions([Lora(path)]))
    ours = params_to_torch(params["unet"])[f"{ATTENTION}.weight"]
    expected = merged(weights, factors, factor)[f"unet.{ATTENTION}.weight"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("/x/b:c.safetensors:-1e-1", ("/x/b:c.safetensors", -0.1)),
        ("C:\\a.safetensors", ("C:\\a.safetensors", 1.0)),
    ],
)
def test_a_scale_follows_the_last_colon(text, expected):
    assert parse_lora(text) == expected


STEM = f"unet.{ATTENTION}"
ONES = {"down": np.ones((RANK, 16), np.float32), "up": np.ones((16, RANK), np.float32)}
GOOD = {f"{STEM}.lora_A.weight": ONES["down"], f"{STEM}.lora_B.weight": ONES["up"]}


def without(name):
    return {key: value for key, value in GOOD.items() if not key.endswith(name)}


REFUSED = {
    "half a pair": (without("lora_B.weight"), "has no up factor"),
    "other half": (without("lora_A.weight"), "has no down factor"),
    "no LoRA": ({"conv_in.weight": ONES["up"]}, "holds conv_in.weight, which is no LoRA's"),
    "of nothing": ({}, "holds nothing, which is no LoRA's"),
    "another model": (
        {name.replace("down_blocks.0", "down_blocks.7"): x for name, x in GOOD.items()},
        "updates unet.down_blocks.7.* which the unet does not have",
    ),
    "another network": (
        {name.replace("unet.", "text_encoder_2."): x for name, x in GOOD.items()},
        "has no text_encoder_2",
    ),
    "wider": (
        GOOD | {f"{STEM}.lora_A.weight": np.ones((RANK, 20), np.float32)},
        r"factors of shapes \(16, 2\) and \(2, 20\) for a weight of \(16, 16\)",
    ),
    "two ranks": (
        GOOD | {f"{STEM}.lora_A.weight": np.ones((3, 16), np.float32)},
        "factors of shapes",
    ),
    "no rank": (
        {
            f"{STEM}.lora_A.weight": np.ones((0, 16), np.float32),
            f"{STEM}.lora_B.weight": np.ones((16, 0), np.float32),
        },
        "factors of shapes",
    ),
    "LoHa": ({f"{STEM}.hada_w1_a": ONES["up"]}, "is LoHa: only plain LoRA"),
    "LoKr": ({f"{STEM}.lokr_w1": ONES["up"]}, "is LoKr: only plain LoRA"),
    "DoRA": (GOOD | {f"{STEM}.dora_scale": ONES["up"]}, "is DoRA: only plain LoRA"),
    "Tucker": (GOOD | {f"{STEM}.lora_mid.weight": ONES["up"]}, "is LoCon with a core"),
    "two alphas": (GOOD | {f"{STEM}.alpha": np.ones(2, np.float32)}, "has 2 numbers, not one"),
    "no number": (GOOD | {f"{STEM}.alpha": np.array(np.nan, np.float32)}, "alpha of nan"),
    "one weight twice": (
        GOOD | {name.replace("unet.", "diffusion_model."): x for name, x in GOOD.items()},
        "twice, under two names",
    ),
    "integers": ({name: np.ones((2, 2), np.int32) for name in GOOD}, "as I32, only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_lora_of_this_model_is_refused(case, pipeline_dir, tmp_path):
    tensors, message = REFUSED[case]
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(PriorError, match=message) as error:
        load_prior(pipeline_dir, additions=Additions([Lora(path)]))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[]", "is not a JSON object"),
        ("{", "cannot be read as a LoRA"),
        ('{"unet.lora_alpha": "x"}', "cannot be read as a LoRA"),
        ('{"unet.use_dora": true}', "says use_dora"),
    ],
)
def test_a_strange_header_is_refused(metadata, message, pipeline_dir, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(GOOD, path, {"lora_adapter_metadata": metadata})
    with pytest.raises(PriorError, match=message) as error:
        load_prior(pipeline_dir, additions=Additions([Lora(path)]))
    assert str(path) in str(error.value)


def test_a_torn_file_is_refused(pipeline_dir, tmp_path):
    path = Path(tmp_path / "a.safetensors")
    path.write_bytes(b"\x10")
    with pytest.raises(PriorError, match="a.safetensors is not a whole safetensors file"):
        load_prior(pipeline_dir, additions=Additions([Lora(path)]))
