"""One-file checkpoints in LDM names, made of what diffusers saves, by its rule reversed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]

RESNET = (
    *(("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0")),
    *(("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1")),
    ("conv_shortcut", "skip_connection"),
)
OUTSIDE = (
    *(("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2")),
    *(("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")),
    *(("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2")),
)


def unet_to_ldm(unet: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Tensors:
    """Renames a U-Net's tensors, by walking along its blocks in the order of LDM's lists."""
    pairs = list(OUTSIDE)
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    number = 1
    for level in range(levels):
        for layer in range(layers):
            pairs.append((f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{layer}"))
            pairs.append((f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{layer}"))
            number += 1
        if level < levels - 1:
            down = f"down_blocks.{level}.downsamplers.0.conv"
            pairs.append((f"input_blocks.{number}.0.op", down))
            number += 1
    for place, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        pairs.append((f"middle_block.{place}", f"mid_block.{part}"))
    number = 0
    for level in range(levels):
        attends = "CrossAttn" in config["up_block_types"][level]
        for layer in range(layers + 1):
            pairs.append((f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{layer}"))
            pairs.append((f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{layer}"))
            number += 1
        if level < levels - 1:
            up = f"up_blocks.{level}.upsamplers.0.conv"
            pairs.append((f"output_blocks.{number - 1}.{1 + attends}.conv", up))
    tensors = {}
    for ldm, diffusers in pairs:
        for name in unet:
            if name.startswith(f"{diffusers}."):
                rest = name.removeprefix(diffusers)
                if ".resnets." in name:
                    for ours, theirs in RESNET:
                        rest = rest.replace(f".{ours}.", f".{theirs}.")
                tensors[ldm + rest] = unet[name]
    assert len(tensors) == len(unet), set(unet) - set(tensors)
    return tensors


def vae_to_ldm(vae: Mapping[str, np.ndarray], levels: int) -> Tensors:
    """Renames an autoencoder's tensors; its attention's matrices become 1x1 convolutions."""
    tensors = {}
    for name, tensor in vae.items():
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "attentions" in name:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = new.replace("to_out.0", "proj_out").replace("to_", "")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        for end in ("resnets", "upsamplers.0"):
            new = re.sub(
                rf"up_blocks\.(\d)\.{end}",
                lambda m, end=end: (
                    f"up.{levels - 1 - int(m[1])}.{'block' if end == 'resnets' else 'upsample'}"
                ),
                new,
            )
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        tensors[new] = tensor
    return tensors


def clip_to_open_clip(text: Mapping[str, np.ndarray]) -> Tensors:
    """Renames a text tower's tensors as OpenCLIP's, and joins query, key and value."""
    tensors: Tensors = {}
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    for name, tensor in text.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if layer is None:
            short = name.replace("embeddings.position_embedding.weight", "positional_embedding")
            short = short.replace("embeddings.", "").replace("final_layer_norm", "ln_final")
            is_projection = short == "text_projection.weight"
            tensors["text_projection" if is_projection else short] = (
                np.ascontiguousarray(tensor.T) if is_projection else tensor
            )
            continue
        stem, part = f"transformer.resblocks.{layer[1]}", layer[2]
        if "q_proj" in part:
            parts = [text[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensors[f"{stem}.attn.in_proj_{part.rpartition('.')[2]}"] = np.concatenate(parts)
        elif "k_proj" not in part and "v_proj" not in part:
            for old, new in (
                *(("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
                ("self_attn", "attn"),
            ):
                part = part.replace(old, new)
            tensors[f"{stem}.{part}"] = tensor
    return tensors


def under(prefix: str, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the tensors under longer names, each in memory of its own, as files need it."""
    return {prefix + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write_single_file(pipeline: Path, path: Path) -> None:
    """Writes a Stable Diffusion 1.x, which diffusers saved as a folder, as one file."""
    unet, vae = (
        load_file(pipeline / name / "diffusion_pytorch_model.safetensors")
        for name in ("unet", "vae")
    )
    config, vae_config = (
        json.loads((pipeline / name / "config.json").read_text()) for name in ("unet", "vae")
    )
    text = load_file(pipeline / "text_encoder" / "model.safetensors")
    clip = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in text.items()}
    levels = len(vae_config["block_out_channels"])
    tensors = under("model.diffusion_model.", unet_to_ldm(unet, config))
    tensors |= under("first_stage_model.", vae_to_ldm(vae, levels))
    save_file(tensors | under("cond_stage_model.transformer.", clip), path)
