"""The mapping of names and shapes, and files, good and broken."""

import collections
import json
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dreamfusion_jax.diffusion.loading import model_files
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.weights import (
    params_from_torch,
    params_to_torch,
    read_component,
    write_component,
)
from dreamfusion_jax.runtime import files
from dreamfusion_jax.runtime.errors import PriorError

UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_round_trip_is_exact(component, pipeline_dir):
    (path,) = (pipeline_dir / component).glob("*.safetensors")
    tensors = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    back = params_to_torch(params_from_torch(tensors))
    assert back.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(back[name], tensors[name], err_msg=name)


def test_clip_round_trip_is_exact(redraw, arrays):
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 11}
    tower["num_attention_heads"] = 2
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 9, "max_position_embeddings": 4},
        vision_config={**tower, "image_size": 4, "patch_size": 2},
    )
    tensors = arrays(redraw(transformers.CLIPModel(config)))
    params = params_from_torch(tensors)
    assert "layers_10" in params["text_model"]["encoder"]
    assert params["logit_scale"].shape == ()
    back = params_to_torch(params)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_layouts():
    tensors = {
        "time_embedding.linear_1.weight": np.arange(6.0).reshape(2, 3),
        "mid_block.attentions.0.proj_in.weight": np.arange(24.0).reshape(2, 3, 2, 2),
        "mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0.bias": np.arange(2.0),
        "conv_norm_out.weight": np.arange(3.0),
        "embeddings.token_embedding.weight": np.arange(6.0).reshape(3, 2),
    }
    params = params_from_torch(tensors)
    assert params["time_embedding"]["linear_1"]["kernel"].tolist() == [[0, 3], [1, 4], [2, 5]]
    convolution = params["mid_block"]["attentions_0"]["proj_in"]["kernel"]
    assert convolution.shape == (2, 2, 3, 2)
    assert convolution[0, 1, 2, 1] == tensors["mid_block.attentions.0.proj_in.weight"][1, 2, 0, 1]
    block = params["mid_block"]["attentions_0"]["transformer_blocks_1"]
    assert block["attn1"]["to_out_0"]["bias"].tolist() == [0, 1]
    assert params["conv_norm_out"]["scale"].tolist() == [0, 1, 2]
    assert params["embeddings"]["token_embedding"]["embedding"].shape == (3, 2)


@pytest.mark.parametrize(
    ("component", "library", "name"),
    [
        ("unet", diffusers, "UNet2DConditionModel"),
        ("vae", diffusers, "AutoencoderKL"),
        ("text_encoder", transformers, "CLIPTextModel"),
    ],
)
def test_torch_loads_what_we_write(component, library, name, pipeline_dir, tmp_path, arrays):
    config, params = read_component(pipeline_dir / component)
    write_component(tmp_path, config, params)
    module_class = getattr(library, name)
    ours = arrays(module_class.from_pretrained(tmp_path))
    theirs = arrays(module_class.from_pretrained(pipeline_dir / component))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


@pytest.fixture
def unet_dir(pipeline_dir, tmp_path) -> Path:
    """A copy of the U-Net to spoil."""
    return Path(shutil.copytree(pipeline_dir / "unet", tmp_path / "unet"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_as_float32(dtype, unet_dir):
    tensors = load_file(unet_dir / UNET_FILE)
    (unet_dir / UNET_FILE).unlink()
    half = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(half, unet_dir / "diffusion_pytorch_model.fp16.safetensors")
    back = params_to_torch(read_component(unet_dir)[1])
    for name, tensor in half.items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], tensor.float().numpy())


def test_float16_is_written_where_asked(pipeline_dir, tmp_path):
    config, params = read_component(pipeline_dir / "unet")
    write_component(tmp_path, config, params, np.float16)
    whole = (pipeline_dir / "unet" / UNET_FILE).stat().st_size
    assert (tmp_path / UNET_FILE).stat().st_size < 0.6 * whole


def test_shards_are_joined(unet_dir):
    whole = load_file(unet_dir / UNET_FILE)
    (unet_dir / UNET_FILE).unlink()
    names = sorted(whole)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({name: whole[name] for name in part}, unet_dir / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    index_file = unet_dir / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps(index))
    back = params_to_torch(read_component(unet_dir)[1])
    assert back.keys() == whole.keys()
    (unet_dir / "b.safetensors").unlink()
    with pytest.raises(PriorError, match="b.safetensors is missing"):
        read_component(unet_dir)


def test_each_config_is_read_once_and_each_tensor_placed_once(pipeline_dir, monkeypatch):
    configs, placed = collections.Counter(), []

    def read_json(path):
        configs[path.relative_to(pipeline_dir).as_posix()] += 1
        return files.read_json(path)

    monkeypatch.setattr(model_files, "read_json", read_json)
    _, params = load_prior(pipeline_dir, place=lambda array: placed.append(array) or array)
    names = ("unet/config.json", "vae/config.json", "text_encoder/config.json")
    assert all(configs[name] == 1 for name in (*names, "scheduler/scheduler_config.json"))
    leaves = jax.tree.leaves(params)
    assert len(placed) == len(leaves)
    assert {id(leaf) for leaf in leaves} == {id(array) for array in placed}
