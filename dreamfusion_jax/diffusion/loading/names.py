"""The names of torch's tensors in Flax, and what older versions called them.

`.N` joins the name before it (`to_out.0` -> `to_out_0`); a 4-D weight is a convolution's `kernel`
with the axes (2, 3, 1, 0), a 2-D one a linear layer's `kernel` transposed or an embedding
unchanged, a 1-D one a norm's `scale`. Name and shape decide; no module is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dreamfusion_jax.diffusion.loading.tensor_files import POSITION_IDS

Params = dict[str, Any]
# A stored tensor, by its name, to what it holds of a network in today's names: mostly one tensor.
Rename = Callable[[str, np.ndarray], Iterable[tuple[str, np.ndarray]]]

TEXT_PROJECTION = "text_projection.weight"
EMBEDDINGS = ("token_embedding", "position_embedding", "shared", "relative_attention_bias")
# The torch modules with an underscore before a number: the time embedding's layers, and T5's.
NUMBERED = re.compile(r"(?<!^linear)(?<!^wi)_(\d+)$")
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def params_from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """Converts a torch state dict, as arrays, to nested Flax params.

    Raises:
      ValueError: two tensors map to one name.
    """
    params = dict(to_flax(name, tensor) for name, tensor in tensors.items())
    if len(params) < len(tensors):
        raise ValueError("two tensors have names that mean the same")
    return unflatten_dict(params)


def params_to_torch(params: Params) -> dict[str, np.ndarray]:
    """Converts Flax params to a torch state dict: the inverse of `params_from_torch`."""
    return dict(_to_torch(path, leaf) for path, leaf in flatten_dict(params).items())


def upgrade_legacy_keys(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Upgrades all names that older versions of diffusers and transformers wrote."""
    rename = legacy_rename(tensors)
    return dict(pair for name, tensor in tensors.items() for pair in rename(name, tensor))


def legacy_rename(names: Collection[str], ignored: Collection[str] = ()) -> Rename:
    """Makes the upgrade of a network's names, given all of them.

    CLIP towers once saved `position_ids` and a prefix; the autoencoder's attention was named query,
    key, value, proj_attn, sometimes in the shape of 1x1 convolutions.

    Args:
      ignored: names of tensors that may be there, but are of no use.
    """
    prefix = _prefix([name for name in names if name not in ignored])

    def rename(name: str, tensor: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        if name.endswith(POSITION_IDS) or name in ignored:
            return []
        return [_upgrade_attention(name.removeprefix(prefix), tensor)]

    return rename


def _prefix(names: Collection[str]) -> str:
    """Returns the prefix of all names of a CLIP tower that transformers < 5 saved, or ""."""
    names = [name for name in names if not name.endswith(POSITION_IDS)]
    for prefix in ("text_model.", "vision_model."):
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _upgrade_attention(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    match = re.fullmatch(
        r"((?:encoder|decoder)\.mid_block\.attentions\.\d+\.)(.+)\.(weight|bias)", name
    )
    if match is None:
        return name, tensor
    if tensor.ndim == 4:
        tensor = tensor[:, :, 0, 0]
    return f"{match[1]}{LEGACY_ATTENTION.get(match[2], match[2])}.{match[3]}", tensor


def to_flax(name: str, tensor: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the path of a tensor among Flax params, and its array there."""
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
