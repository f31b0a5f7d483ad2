"""Low-rank updates (LoRA) in files, as diffusers, PEFT and kohya's trainers name them.

Merged into the weights as these are read, in float32, W += scale alpha / rank (up @ down): what
diffusers' `load_lora_weights` and `fuse_lora` do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamfusion_jax.diffusion.loading.tensor_files import (
    header_metadata,
    opened,
    tensor_specs,
)
from dreamfusion_jax.diffusion.loading.weights import Change, reraise_as_prior_error
from dreamfusion_jax.runtime.errors import PriorError

# The ends of names, and which factor they are of a module's update.
ENDS = (
    *((".lora_down.weight", "down"), (".lora_up.weight", "up")),
    *((".lora_A.weight", "down"), (".lora_B.weight", "up")),
    *((".lora.down.weight", "down"), (".lora.up.weight", "up")),
    *((".lora_linear_layer.down.weight", "down"), (".lora_linear_layer.up.weight", "up")),
    *(("_lora.down.weight", "down"), ("_lora.up.weight", "up")),
    (".alpha", "alpha"),
)
# What other kinds of updates have in their names, which are no product of two matrices.
OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a core (Tucker)",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "lora_B.bias": "LoRA with a bias",
}
# The beginnings of names: kohya's, diffusers', and ComfyUI's; none is a U-Net's.
BEGINNINGS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "diffusion_model.": "unet",
}
TEXT_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
METADATA = "lora_adapter_metadata"
MAX_NAMES_SHOWN = 5


class Lora(NamedTuple):
    """A file of low-rank updates, and the scale of all of them."""

    path: Path
    scale: float = 1.0


class Update(NamedTuple):
    """The update of one module: the names of its factors in a file, and what multiplies them."""

    path: Path
    down: str
    up: str
    factor: float


Shapes = Mapping[str, tuple[int, ...]]  # of a network's weights, by their names in torch


def lora_changes(
    loras: Sequence[Lora],
    networks: Mapping[str, Shapes],
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Change]:
    """Reads which weights the files update; no factor is read before its weight is.

    Args:
      networks: the weights of each network ("unet", "text_encoder", "text_encoder_2").
      aliases: of the U-Net's weights, by other names that files may call them.

    Returns:
      by network, what changes its tensors as they are read.

    Raises:
      PriorError: a file is missing or broken, or was made for another model or in another way.
    """
    updates: dict[str, dict[str, list[Update]]] = {name: {} for name in networks}
    tables = {name: _table(shapes) for name, shapes in networks.items()}
    for name, weight in (aliases or {}).items():
        tables["unet"].setdefault(_key(name.removesuffix(".weight")), weight)
    for lora in loras:
        with reraise_as_prior_error(lora.path, "cannot be read as a LoRA"):
            for network, weight, update in _read(lora, tables, networks):
                updates[network].setdefault(weight, []).append(update)
    return {name: _change(found) for name, found in updates.items() if found}


def _change(updates: Mapping[str, Sequence[Update]]) -> Change:
    def change(name: str, tensor: np.ndarray) -> np.ndarray:
        for update in updates.get(name, ()):
            tensor = tensor + _product(update).reshape(tensor.shape)
        return tensor

    return change


def _product(update: Update) -> np.ndarray:
    with opened(update.path) as file:
        down, up = (np.asarray(file.get_tensor(n), np.float32) for n in (update.down, update.up))
    return update.factor * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))


def _read(
    lora: Lora, tables: Mapping[str, Mapping[str, str]], networks: Mapping[str, Shapes]
) -> list[tuple[str, str, Update]]:
    """Returns network, weight and update of every module that a file updates."""
    specs = tensor_specs([lora.path])
    alphas = _metadata_alphas(lora.path)
    found, seen = [], set()
    for module, parts in _by_module(specs).items():
        if missing := {"down", "up"} - parts.keys():
            raise PriorError(f"its {module:.200} has no {' and no '.join(sorted(missing))} factor.")
        network, weight = _find(module, tables)
        if (network, weight) in seen:
            raise PriorError(f"it updates {weight:.200} of the {network} twice, under two names.")
        seen.add((network, weight))
        down, up = specs[parts["down"]].shape, specs[parts["up"]].shape
        _check_shapes(module, down, up, networks[network][weight])
        rank = down[0]
        alpha = alphas.get(network, lambda weight, rank: rank)(weight, rank)
        if "alpha" in parts:
            alpha = _number(lora.path, parts["alpha"], specs[parts["alpha"]])
        factor = lora.scale * float(alpha) / rank
        if not math.isfinite(factor):
            raise PriorError(f"its {module:.200} has an alpha of {alpha}, which is no number.")
        found.append((network, weight, Update(lora.path, parts["down"], parts["up"], factor)))
    return found


def _by_module(names: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Groups the names of tensors by their module: {"down": name, "up": name, "alpha": name}."""
    modules: dict[str, dict[str, str]] = {}
    strange = []
    for name in names:
        for mark, kind in OTHER_KINDS.items():
            if mark in name:
                raise PriorError(
                    f"it holds {name:.200}, which is {kind}: only plain LoRA is supported, so merge"
                    " it into a model by the program that made it."
                )
        end = next((end for end in ENDS if name.endswith(end[0])), None)
        if end is None:
            strange.append(name)
            continue
        parts = modules.setdefault(_plain(name.removesuffix(end[0])), {})
        if end[1] in parts:
            raise PriorError(f"it holds {name:.200} twice, under two names.")
        parts[end[1]] = name
    if strange or not modules:
        shown = ", ".join(f"{name:.100}" for name in strange[:MAX_NAMES_SHOWN]) or "nothing"
        raise PriorError(f"it holds {shown}, which is no LoRA's: give a file of low-rank updates.")
    return modules


def _plain(module: str) -> str:
    """Returns a module's name without what wraps it in some files."""
    return module.removeprefix("base_model.model.").replace(".processor.", ".")


def _find(module: str, tables: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """Returns the network and the weight that a file means by a module's name."""
    beginning = next((b for b in BEGINNINGS if module.startswith(b)), "")
    network = BEGINNINGS.get(beginning, "unet")
    if network not in tables:
        raise PriorError(
            f"it updates {module:.200}, but this prior has no {network} that takes a LoRA: give one"
            " that was made for this model."
        )
    weight = tables[network].get(_key(module.removeprefix(beginning)))
    if weight is None:
        raise PriorError(
            f"it updates {module:.200}, which the {network} does not have: give one that was made"
            " for this model."
        )
    return network, weight


def _table(shapes: Shapes) -> dict[str, str]:
    """Returns the weights by all keys that files have for them."""
    table = {}
    for name in shapes:
        if not name.endswith(".weight"):
            continue
        key = _key(name.removesuffix(".weight"))
        table[key] = name
        if key.endswith("_to_out_0"):  # The first files left out that it is one of a list.
            table[key.removesuffix("_0")] = name
        for old, new in TEXT_ATTENTION.items():
            if key.endswith(f"self_attn_{new}"):
                table[key.removesuffix(new) + old] = name
    return table


def _key(module: str) -> str:
    """Returns a name in which dots and underscores are the same, as in kohya's."""
    return module.replace(".", "_").removeprefix("text_model_")


def _check_shapes(
    module: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    rows, columns = weight[0], math.prod(weight[1:])
    fits = (
        min(len(down), len(up), len(weight)) >= 2
        and down[0] == up[1] > 0
        and math.prod(up) == rows * up[1]
        and math.prod(down) == columns * down[0]
    )
    if not fits:
        raise PriorError(
            f"its {module:.200} has factors of shapes {up} and {down} for a weight of {weight}: "
            "give one that was made for this model."
        )


def _number(path: Path, name: str, spec: np.ndarray) -> float:
    if spec.size != 1:
        raise PriorError(f"its {name:.200} has {spec.size} numbers, not one.")
    with opened(path) as file:
        return float(np.asarray(file.get_tensor(name), np.float32).reshape(()))


def _metadata_alphas(path: Path) -> dict[str, Any]:
    """Returns, by network, weight and rank -> alpha of a file whose header gives a configuration.

    PEFT saves its LoraConfig so; with `use_rslora` updates are divided by the rank's square root.
    """
    text = header_metadata(path).get(METADATA)
    config = json.loads(text) if text is not None else {}
    if not isinstance(config, dict):
        raise PriorError(f"its header's {METADATA} is not a JSON object.")
    networks = {key.partition(".")[0] for key in config if "." in key}
    return {name: _config_alpha(config, name) for name in networks}


def _config_alpha(config: Mapping[str, Any], network: str) -> Any:
    alpha, patterns = config.get(f"{network}.lora_alpha"), config.get(f"{network}.alpha_pattern")
    if config.get(f"{network}.use_dora"):
        raise PriorError("its header says use_dora: only plain LoRA is supported.")

    def of(weight: str, rank: int) -> float:
        module = weight.removesuffix(".weight")
        matching = [
            value
            for key, value in (patterns or {}).items()
            if module == key.lstrip("^") or module.endswith(f".{key.lstrip('^')}")
        ]
        value = (matching or [alpha])[0]
        number = float(rank if value is None else value)
        return number * math.sqrt(rank) if config.get(f"{network}.use_rslora") else number

    return of


def parse_lora(text: str) -> tuple[str, float]:
    """Splits "file:0.8" into the file's name and the scale; without one it is 1.

    Raises:
      ValueError: the scale is not finite.
    """
    name, colon, scale = text.rpartition(":")
    if not colon or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", scale):
        return text, 1.0
    if not math.isfinite(float(scale)):
        raise ValueError(f"the scale {scale} is too large")
    return name, float(scale)
