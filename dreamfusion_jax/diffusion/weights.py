"""Weights in the layout of diffusers and transformers: a config.json beside safetensors files.

Names, torch to Flax: `.N` joins the name before it (`to_out.0` -> `to_out_0`); a 4-D weight is a
convolution's `kernel` with the axes (2, 3, 1, 0), a 2-D one a linear layer's `kernel` transposed or
an embedding as it is, a 1-D one a norm's `scale`. Name and shape decide it all, no module needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dreamfusion_jax.errors import UserError

Params = dict[str, Any]
FILE_STEMS = ("diffusion_pytorch_model", "model")
EMBEDDINGS = ("token_embedding", "position_embedding")
# The time embedding's layers are the only torch modules with an underscore before a number.
NUMBERED = re.compile(r"(?<!^linear)_(\d+)$")
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def params_from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """A torch state dict, as arrays, to nested Flax params."""
    return unflatten_dict(dict(_to_flax(name, tensor) for name, tensor in tensors.items()))


def params_to_torch(params: Params) -> dict[str, np.ndarray]:
    """Flax params to a torch state dict: the exact inverse of `params_from_torch`."""
    return dict(_to_torch(path, leaf) for path, leaf in flatten_dict(params).items())


def read_config(directory: str | Path, name: str = "config.json") -> dict[str, Any]:
    """Parses a JSON object; a missing or broken file is the user's to mend."""
    path = Path(directory) / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: expected a diffusers-layout directory.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return config


def read_component(directory: str | Path) -> tuple[dict[str, Any], Params]:
    """Reads config.json and the safetensors of one network as float32 params.

    The files are memory-mapped, so that no more than one tensor is held twice. Names of older
    versions of diffusers and transformers are brought up to date.
    """
    directory = Path(directory)
    config = read_config(directory)
    return config, params_from_torch(modern_names(_read_tensors(directory)))


def load_module(directory: str | Path, module_class: Any, dtype: Any) -> tuple[Any, Params]:
    """A network built from its config.json, and its params, checked against each other."""
    config, params = read_component(directory)
    module = module_class.from_config(config, dtype)
    check_params(module, params, directory)
    return module, params


def check_params(module: nn.Module, params: Params, directory: str | Path) -> None:
    """Raises UserError naming every tensor that is missing, surplus or of the wrong shape."""
    inputs = module.dummy_inputs()
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    expected = {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}
    found = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    problems = [
        ("missing", sorted(expected.keys() - found.keys())),
        ("surplus", sorted(found.keys() - expected.keys())),
        (
            "of another shape than config.json says",
            [
                f"{name} {found[name]} instead of {expected[name]}"
                for name in sorted(expected.keys() & found.keys())
                if expected[name] != found[name]
            ],
        ),
    ]
    said = [f"{what}: {', '.join(names)}" for what, names in problems if names]
    if said:
        raise UserError(
            f"The weights in {directory} do not fit {type(module).__name__}; "
            + "; ".join(said)
            + "."
        )


def write_component(
    directory: str | Path, config: Mapping[str, Any], params: Params, dtype: Any = np.float32
) -> None:
    """Writes config.json and a safetensors file that diffusers or transformers loads unchanged."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = params_to_torch(params)
    if config.get("model_type") == "clip_text_model":
        # As every published Stable Diffusion has it; transformers 4 and 5 both read this.
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    # Contiguous: of a transposed view, safetensors would write the bytes in their old order.
    tensors = {name: np.array(tensor, dtype, order="C") for name, tensor in tensors.items()}
    stem = (
        "model" if "model_type" in config else "diffusion_pytorch_model"
    )  # transformers, diffusers
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file(tensors, directory / f"{stem}.safetensors", metadata={"format": "pt"})


def modern_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Brings names written by older diffusers and transformers up to date.

    CLIP towers once saved `position_ids` and a prefix; the autoencoder's attention was called
    query, key, value, proj_attn, at times in the shape of 1x1 convolutions.
    """
    tensors = {name: t for name, t in tensors.items() if not name.endswith(".position_ids")}
    for prefix in ("text_model.", "vision_model."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    return dict(_modern_attention(name, tensor) for name, tensor in tensors.items())


def _modern_attention(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    match = re.fullmatch(
        r"((?:encoder|decoder)\.mid_block\.attentions\.\d+\.)(.+)\.(weight|bias)", name
    )
    if match is None:
        return name, tensor
    if tensor.ndim == 4:
        tensor = tensor[:, :, 0, 0]
    return f"{match[1]}{LEGACY_ATTENTION.get(match[2], match[2])}.{match[3]}", tensor


def _to_flax(name: str, tensor: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    path: list[str] = []
    for part in name.split("."):
        if part.isdigit() and path:
            path[-1] += f"_{part}"
        else:
            path.append(part)
    if path[-1] == "weight":
        if tensor.ndim == 4:
            path[-1], tensor = "kernel", tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2 and path[-2] in EMBEDDINGS:
            path[-1] = "embedding"
        elif tensor.ndim == 2:
            path[-1], tensor = "kernel", tensor.T
        else:
            path[-1] = "scale"
    return tuple(path), tensor


def _to_torch(path: tuple[str, ...], leaf: Any) -> tuple[str, np.ndarray]:
    tensor = np.asarray(leaf)
    *modules, last = (NUMBERED.sub(r".\1", part) for part in path)
    if last == "kernel":
        tensor = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
    if last in ("kernel", "scale", "embedding"):
        last = "weight"
    return ".".join([*modules, last]), tensor


def _read_tensors(directory: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for path in _safetensors_files(directory):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    tensors[name] = file.get_tensor(name).astype(np.float32)
        except FileNotFoundError:
            raise UserError(f"{path} is missing, though the index beside it names it.") from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is not a whole safetensors file ({error}): download it again."
            ) from None
    return tensors


def _safetensors_files(directory: Path) -> list[Path]:
    """The one file of a network, or the shards that its index names; full precision first."""
    for stem in FILE_STEMS:
        for variant in ("", ".fp16"):
            path = directory / f"{stem}{variant}.safetensors"
            if path.is_file():
                return [path]
            index = f"{stem}.safetensors.index{variant}.json"
            if (directory / index).is_file():
                names = read_config(directory, index).get("weight_map", {}).values()
                return [directory / name for name in sorted(set(names))]
    if any(directory.glob("*.bin")) or any(directory.glob("*.ckpt")):
        raise UserError(
            f"{directory} holds only pickled weights: convert them to safetensors "
            "(diffusers' save_pretrained does), pickles can run any code."
        )
    raise UserError(
        f"{directory} holds no {FILE_STEMS[0]}.safetensors or {FILE_STEMS[1]}.safetensors."
    )
