"""The names of tensors in one-file checkpoints: those of LDM, the first program of these models.

Each table leads from a name there to the same tensor's name in diffusers or transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dreamfusion_jax.diffusion.loading.names import TEXT_PROJECTION, Rename, params_to_torch
from dreamfusion_jax.diffusion.loading.weights import expected_specs
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL

OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "camera_embed.linear_1": "camera_embed.0",
    "camera_embed.linear_2": "camera_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_UNUSED = ("logit_scale", "attn_mask")


def torch_names(module: Any) -> list[str]:
    """Returns the names of a network's tensors in diffusers or transformers."""
    return list(params_to_torch(expected_specs(module)))


def unet_table(unet: UNet2DConditionModel) -> dict[str, str]:
    """Returns a U-Net's names by those of LDM, whose blocks all have as many layers."""
    layers = unet.layers_per_block
    assert isinstance(layers, int)
    return {_unet_name(name, layers, unet): name for name in torch_names(unet)}


def _unet_name(name: str, layers: int, unet: UNet2DConditionModel) -> str:
    module, _, end = name.rpartition(".")
    if module in OUTSIDE_BLOCKS:
        return f"{OUTSIDE_BLOCKS[module]}.{end}"
    parts = name.split(".")
    block = parts[0] if parts[0] == "mid_block" else ".".join(parts[:2])
    kind, number, rest = name.removeprefix(f"{block}.").split(".", 2)
    if kind == "resnets":
        part, _, end = rest.rpartition(".")
        rest = f"{RESNET[part]}.{end}"
    if block == "mid_block":
        return f"middle_block.{MIDDLE[f'{kind}.{number}']}.{rest}"
    direction, _, level = block.partition(".")
    first = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{1 + first + layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in unet.up_block_types[int(level)] else 1
        return f"output_blocks.{first + layers}.{place}.{rest}"
    index = first + int(number)
    prefix = f"input_blocks.{1 + index}" if direction == "down_blocks" else f"output_blocks.{index}"
    return f"{prefix}.{0 if kind == 'resnets' else 1}.{rest}"


def vae_table(vae: AutoencoderKL) -> dict[str, str]:
    """Returns an autoencoder's names by those of LDM."""
    levels = len(vae.block_out_channels)
    return {_vae_name(name, levels): name for name in torch_names(vae)}


def _vae_name(name: str, levels: int) -> str:
    for ours, theirs in VAE_PARTS.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.)", rf"\g<1>{theirs}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name).replace(".resnets.", ".block.")
    return re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)


def table_rename(prefix: str, table: Mapping[str, str]) -> Rename:
    """Makes the renaming of what begins with `prefix`; names that are not known stay as they are.

    1x1 convolutions of the autoencoder's attention become the linear layers that they are.
    """

    def rename(name: str, tensor: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        if not name.startswith(prefix):
            return []
        known = table.get(name.removeprefix(prefix), name)
        if ".mid_block.attentions.0.to_" in known and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        return [(known, tensor)]

    return rename


def clip_rename(prefix: str) -> Rename:
    """Makes the renaming of a CLIP under `prefix`, whose names are transformers' already."""

    def rename(name: str, tensor: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        if not name.startswith(prefix):
            return []
        return [(name.removeprefix(prefix).removeprefix("text_model."), tensor)]

    return rename


def open_clip_rename(prefix: str, layers: int, projected: bool) -> Rename:
    """Makes the renaming of an OpenCLIP under `prefix`, which joins query, key and value.

    Args:
      layers: of the network; those that follow are left out.
      projected: whether it is transformers' CLIPTextModelWithProjection, not CLIPTextModel.
    """
    tower = "text_model." if projected else ""

    def rename(name: str, tensor: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        if not name.startswith(prefix):
            return []
        short = name.removeprefix(prefix)
        if short in OPEN_CLIP_UNUSED:
            return []
        if short == "text_projection":
            return [(TEXT_PROJECTION, tensor.T)] if projected else []
        if short in OPEN_CLIP:
            return [(tower + OPEN_CLIP[short], tensor)]
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", short)
        if match is None:
            return [(name, tensor)]
        if int(match[1]) >= layers:
            return []
        return [
            (f"{tower}encoder.layers.{match[1]}.{part}", piece)
            for part, piece in _layer_parts(match[2], tensor)
        ]

    return rename


def _layer_parts(part: str, tensor: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if part.startswith("attn.in_proj_"):
        kind, third = part.removeprefix("attn.in_proj_"), len(tensor) // 3
        return [
            (f"self_attn.{name}_proj.{kind}", tensor[i * third : (i + 1) * third])
            for i, name in enumerate("qkv")
        ]
    module, _, end = part.rpartition(".")
    return [(f"{OPEN_CLIP_LAYER.get(module, module)}.{end}", tensor)]
