"""One-file checkpoints: Stable Diffusion 1.x, 2.x, XL and MVDream in a .safetensors in LDM names.

Such a file holds no configuration. The networks' shapes follow from its tensors'; what these do not
say (heads, activations, the noise schedule) is the same in all models of a kind, and the kind
follows from the text encoder and from whether there is an embedding of sizes or of a camera.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamfusion_jax.diffusion.loading.hub import VOCABULARY, resolve_model
from dreamfusion_jax.diffusion.loading.ldm_names import (
    clip_rename,
    open_clip_rename,
    table_rename,
    unet_table,
    vae_table,
)
from dreamfusion_jax.diffusion.loading.model_files import read_config, weights_files
from dreamfusion_jax.diffusion.loading.names import Rename
from dreamfusion_jax.diffusion.loading.parts import Parts, Text, clip_text, xl_text
from dreamfusion_jax.diffusion.loading.tensor_files import (
    locate_tensors,
    opened,
    tensor_specs,
)
from dreamfusion_jax.diffusion.loading.text_encoder import Tower
from dreamfusion_jax.diffusion.loading.weights import Source, reraise_as_prior_error
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel, CLIPTextModelWithProjection
from dreamfusion_jax.diffusion.models.unet import UNet2DConditionModel
from dreamfusion_jax.diffusion.models.vae import AutoencoderKL
from dreamfusion_jax.diffusion.schedule import Schedule, schedule_from_config
from dreamfusion_jax.runtime.errors import ArgumentError, PriorError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
XL_REFINER = "conditioner.embedders.0.model."
PREFIXES = (UNET, VAE, CLIP, OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP)
HEAD = 64  # channels of a head wherever the tensors leave it open, but in 1.x, which has 8 heads
SIZE_WAVES = 256  # into which SDXL embeds each of six sizes
BASE_STEPS = 875_000  # global_step of the 2.x models that predict the noise
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "set_alpha_to_one": False,
}

Shapes = Mapping[str, tuple[int, ...]]


class Kind(NamedTuple):
    """What the tensors do not say.

    Attributes:
      sample_size: of the latent.
      scaling_factor: of the autoencoder.
      prediction_type: of the U-Net.
      zero_snr: whether the last step holds no signal.
    """

    sample_size: int
    scaling_factor: float
    prediction_type: str = "epsilon"
    zero_snr: bool = False


def open_single_file(path: Path, dtype: Any, vae_dtype: Any, prediction: str = "") -> Parts:
    """Builds the networks of a checkpoint.

    Its vocabulary is in `tokenizer/` beside it, or else in the hub's cache, where it is downloaded.

    Args:
      prediction: what the U-Net predicts; "": what the file says, or the usual of its kind.

    Raises:
      PriorError: it is none of these models.
    """
    names = locate_tensors([path])
    specs = tensor_specs([path], lambda name: name.startswith(PREFIXES))
    shapes = {name: spec.shape for name, spec in specs.items()}
    with reraise_as_prior_error(path, "is no checkpoint of a kind that can be read"):
        _check_kind(names, shapes)
        kind = _kind(path, names, shapes, prediction)
        unet = _unet(_within(shapes, UNET), kind, dtype)
        vae_dtype = np.float32 if _is_xl(shapes) else vae_dtype or dtype
        vae = _vae(_within(shapes, VAE), kind, vae_dtype)
        text = _text(path, shapes, find_tokenizers(path), kind.sample_size * vae.downscale)
        schedule = _schedule(kind)
    sources = {
        "unet": _source(path, UNET, table_rename(UNET, unet_table(unet))),
        "vae": _source(path, VAE, table_rename(VAE, vae_table(vae))),
    }
    return Parts(path, unet, vae, text, schedule, sources)


def find_tokenizers(path: Path) -> tuple[Path, Path]:
    """Returns the directories of the tokenizers of a checkpoint's first and second text encoder."""
    beside, second = path.parent / "tokenizer", path.parent / "tokenizer_2"
    if beside.is_dir():
        return beside, second if second.is_dir() else beside
    try:
        folder = resolve_model(VOCABULARY.example, model=VOCABULARY)
    except ArgumentError as error:
        raise PriorError(
            f"it holds no vocabulary, and CLIP's could not be fetched ({error}): put vocab.json "
            f"and merges.txt of {VOCABULARY.example} into {beside}."
        ) from None
    return folder, folder


def multi_view_unet(
    directory: Path, variant: str, dtype: Any
) -> tuple[UNet2DConditionModel, Source]:
    """Builds the U-Net of MVDream's folder in diffusers' layout, whose names are still LDM's."""
    config, files = read_config(directory), tuple(weights_files(directory, variant))
    size = config.get("image_size")
    with reraise_as_prior_error(directory / "config.json"):
        if config.get("ip_dim"):
            raise PriorError("ip_dim is of ImageDream, which takes an image: give MVDream.")
        if type(size) is not int:
            raise PriorError(f"image_size={size!r:.80} is not supported, only a number is.")
    shapes = {name: spec.shape for name, spec in tensor_specs(files).items()}
    with reraise_as_prior_error(directory, "holds no U-Net of MVDream's"):
        if "camera_embed.0.weight" not in shapes:
            raise PriorError("it has no camera_embed: it is no U-Net of MVDream's.")
        unet = _unet(shapes, Kind(size, 0.18215), dtype)
    return unet, Source(files, directory, table_rename("", unet_table(unet)))


def _is_xl(shapes: Shapes) -> bool:
    return any(name.startswith(XL_OPEN_CLIP) for name in shapes)


def _check_kind(names: Mapping[str, Path], shapes: Shapes) -> None:
    """Raises a PriorError unless all parts of a text-to-image model are there."""
    if any(name.startswith(XL_REFINER) for name in names) and not _is_xl(shapes):
        raise PriorError("it is SDXL's refiner, which changes an image: give the base model.")
    if not any(name.startswith(UNET) for name in shapes):
        raise PriorError(
            "it holds no U-Net under the names of LDM (model.diffusion_model...): give a whole "
            "checkpoint of Stable Diffusion 1.x, 2.x or XL, or a directory in the diffusers layout."
        )
    if not any(name.startswith(VAE) for name in shapes):
        raise PriorError(
            "it holds no autoencoder (first_stage_model...): give a checkpoint with one, or a "
            "directory in the diffusers layout."
        )
    if not any(name.startswith((CLIP, OPEN_CLIP, XL_CLIP)) for name in shapes):
        raise PriorError(
            "it holds no text encoder (cond_stage_model..., conditioner...): give a checkpoint "
            "with one, or a directory in the diffusers layout."
        )


def _kind(path: Path, names: Mapping[str, Path], shapes: Shapes, prediction: str) -> Kind:
    zero_snr = "ztsnr" in names
    if _is_xl(shapes):
        said = "v_prediction" if "v_pred" in names else "epsilon"
        return Kind(128, 0.13025, prediction or said, zero_snr)
    if f"{UNET}camera_embed.0.weight" in shapes:  # MVDream
        return Kind(32, 0.18215, prediction or "epsilon", zero_snr)
    if any(name.startswith(OPEN_CLIP) for name in shapes):
        base = "global_step" in names and _whole_number(path, "global_step") == BASE_STEPS
        prediction = prediction or ("epsilon" if base else "v_prediction")
        return Kind(64 if prediction == "epsilon" else 96, 0.18215, prediction, zero_snr)
    said = "v_prediction" if "v_pred" in names else "epsilon"
    return Kind(64, 0.18215, prediction or said, zero_snr)


def _whole_number(path: Path, name: str) -> int:
    with opened(path) as file:
        tensor = file.get_tensor(name)
    return int(tensor.reshape(())) if tensor.size == 1 else 0


def _schedule(kind: Kind) -> Schedule:
    config = SCHEDULER | {"prediction_type": kind.prediction_type}
    return schedule_from_config(config | {"rescale_betas_zero_snr": kind.zero_snr})


def _within(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def _unet(shapes: Shapes, kind: Kind, dtype: Any) -> UNet2DConditionModel:
    levels = _levels(shapes)
    layers = {len(level) for level in levels}
    if len(layers) != 1:
        raise PriorError("its U-Net's blocks have different numbers of layers, which none has.")
    channels = [level[-1].channels for level in levels]
    attends = [level[-1].depth > 0 for level in levels]
    linear = any(n.endswith(".proj_in.weight") and len(s) == 2 for n, s in shapes.items())
    widths = [s[1] for n, s in shapes.items() if n.endswith(".attn2.to_k.weight")]
    config: dict[str, Any] = {
        "sample_size": kind.sample_size,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers.pop(),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "transformer_layers_per_block": [max(level[-1].depth, 1) for level in levels],
        "cross_attention_dim": widths[0],
        "attention_head_dim": [max(c // HEAD, 1) if linear else 8 for c in channels],
        "use_linear_projection": linear,
    }
    middle = _depth(shapes, "middle_block.1.")
    if not attends[-1]:  # The mid block is as deep as the lowest block would be.
        config["transformer_layers_per_block"][-1] = max(middle, 1)
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_WAVES,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    unet = UNet2DConditionModel.from_config(config, dtype)
    if "camera_embed.0.weight" in shapes:
        return unet.clone(camera_dim=shapes["camera_embed.0.weight"][1], joint_views=4)
    return unet


class _Layer(NamedTuple):
    channels: int
    depth: int  # of its transformer; 0: none


def _levels(shapes: Shapes) -> list[list[_Layer]]:
    """Returns the layers of every resolution on the way down."""
    levels: list[list[_Layer]] = [[]]
    for i in range(1, 1 + len(shapes)):
        block = f"input_blocks.{i}"
        if f"{block}.0.op.weight" in shapes:
            levels.append([])
        elif (weight := f"{block}.0.in_layers.2.weight") in shapes:
            levels[-1].append(_Layer(shapes[weight][0], _depth(shapes, f"{block}.1.")))
        else:
            break
    if not all(levels):
        raise PriorError("its U-Net has no residual blocks where LDM has them.")
    return levels


def _depth(shapes: Shapes, prefix: str) -> int:
    return _count(shapes, re.escape(prefix) + r"transformer_blocks\.(\d+)\.")


def _count(shapes: Shapes, pattern: str) -> int:
    """Returns how many different numbers the pattern's group has in the names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _vae(shapes: Shapes, kind: Kind, dtype: Any) -> AutoencoderKL:
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    firsts = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    config = {
        "block_out_channels": [shapes[name][0] for name in firsts],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": kind.scaling_factor,
    }
    return AutoencoderKL.from_config(config, dtype)


def _text(path: Path, shapes: Shapes, tokenizers: tuple[Path, Path], image_size: int) -> Text:
    if _is_xl(shapes):
        first = _clip(path, shapes, XL_CLIP, tokenizers[0])
        second = _open_clip(path, shapes, XL_OPEN_CLIP, tokenizers[1], projected=True)
        return xl_text((first, second), image_size, empty_is_zero=True)
    if any(name.startswith(CLIP) for name in shapes):
        return clip_text(_clip(path, shapes, CLIP, tokenizers[0]))
    return clip_text(_open_clip(path, shapes, OPEN_CLIP, tokenizers[0], projected=False))


def _clip(path: Path, shapes: Shapes, prefix: str, tokenizer: Path) -> Tower:
    """Makes OpenAI's ViT-L, or one of its make."""
    own = {n.removeprefix("text_model."): s for n, s in _within(shapes, prefix).items()}
    words = own["embeddings.token_embedding.weight"]
    inner = own["encoder.layers.0.mlp.fc1.weight"][0]
    config = _text_config(words, own["embeddings.position_embedding.weight"][0], inner)
    config |= {
        "hidden_act": "quick_gelu",
        "num_hidden_layers": _count(own, r"encoder\.layers\.(\d+)\."),
    }
    return Tower(
        CLIPTextModel.from_config(config), _source(path, prefix, clip_rename(prefix)), tokenizer
    )


def _open_clip(path: Path, shapes: Shapes, prefix: str, tokenizer: Path, projected: bool) -> Tower:
    """Makes OpenCLIP's ViT-H without its last layer, or (`projected`) the whole ViT-bigG."""
    own = _within(shapes, prefix)
    inner = own["transformer.resblocks.0.mlp.c_fc.weight"][0]
    config = _text_config(own["token_embedding.weight"], own["positional_embedding"][0], inner)
    layers = _count(own, r"transformer\.resblocks\.(\d+)\.") - (not projected)
    config |= {"hidden_act": "gelu", "num_hidden_layers": layers}
    source = _source(path, prefix, open_clip_rename(prefix, layers, projected))
    module: CLIPTextModel | CLIPTextModelWithProjection = CLIPTextModel.from_config(config)
    if projected:
        config["projection_dim"] = own["text_projection"][1]
        module = CLIPTextModelWithProjection.from_config(config)
    return Tower(module, source, tokenizer, pads_with_zero=True)


def _text_config(words: tuple[int, ...], positions: int, inner: int) -> dict[str, Any]:
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "num_attention_heads": max(words[1] // HEAD, 1),
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "eos_token_id": words[0] - 1,
    }


def _source(path: Path, prefix: str, rename: Rename) -> Source:
    return Source((path,), path, rename, prefix=prefix)
