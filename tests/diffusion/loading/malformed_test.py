"""Faults of a prior's files are reported in one sentence that names the file and the fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.runtime.errors import PriorError

Spoil = Callable[[Path], None]
UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{UNET}.index.json"


def remove(name: str) -> Spoil:
    def corrupt(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return corrupt


def write(name: str, content: str | bytes) -> Spoil:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content) and None


def entries(name: str, **changed: object) -> Spoil:
    """Changes entries of a JSON object; None takes one away."""

    def corrupt(folder: Path) -> None:
        values = {**json.loads((folder / name).read_text()), **changed}
        config = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(config))

    return corrupt


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def corrupt(folder: Path) -> None:
        held = load_file(folder / UNET)
        change(held)
        save_file(held, folder / UNET)

    return corrupt


def truncate(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def pickle(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def shard(*names: str) -> Spoil:
    """Weights by an index that names these files, of which only the first is there."""

    def corrupt(folder: Path) -> None:
        (folder / UNET).rename(folder / "unet" / names[0])
        weight_map = {f"tensor {number}": name for number, name in enumerate(names)}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return corrupt


def index_without_map(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/a.safetensors")
    (folder / INDEX).write_text("{}")


def torn_vocabulary(folder: Path) -> None:
    for name in ("vocab.json", "tokenizer.json"):
        (folder / "tokenizer" / name).write_text("{")


def narrow_text(folder: Path) -> None:
    """Writes another pipeline's text encoder, half as wide."""
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size //= 2
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def few_words(folder: Path) -> None:
    """Writes another pipeline's text encoder, with fewer tokens."""
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.vocab_size = 9
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def wide_latents(folder: Path) -> None:
    config = AutoencoderKL.load_config(folder / "vae")
    AutoencoderKL.from_config({**config, "latent_channels": 16}).save_pretrained(folder / "vae")


SCHEDULER = "scheduler/scheduler_config.json"
CORRUPTIONS: dict[str, tuple[Spoil, str]] = {
    "no index": (remove("model_index.json"), "model_index.json is missing"),
    "broken index": (write("model_index.json", "{"), "model_index.json is not readable JSON"),
    "index of words": (write("model_index.json", '"unet"'), "model_index.json.* a JSON object"),
    "no tokenizer named": (
        entries("model_index.json", tokenizer=[None, None]),
        "model_index.json names no tokenizer",
    ),
    "no unet": (remove("unet"), "unet/config.json is missing"),
    "no config": (remove("vae/config.json"), "vae/config.json is missing"),
    "torn config": (write("text_encoder/config.json", "{"), "text_encoder/config.json is not"),
    "binary config": (write("unet/config.json", b"\xff\xfe"), "unet/config.json is not readable"),
    "config is a list": (write("unet/config.json", "[]"), "unet/config.json.* a JSON object"),
    "unknown option": (
        entries("unet/config.json", warp_factor=9),
        "unet/config.json.*warp_factor=9 is not supported",
    ),
    "another value": (
        entries("vae/config.json", act_fn="mish"),
        "vae/config.json.*act_fn='mish' is not supported",
    ),
    "unknown blocks": (
        entries("unet/config.json", down_block_types=["AttnDownBlock2D"] * 2),
        "unet/config.json.*'AttnDownBlock2D' in down_block_types is not supported",
    ),
    "text in place of a number": (
        entries("unet/config.json", layers_per_block="two"),
        "unet/config.json.*layers_per_block='two' is not supported",
    ),
    "channels that no groups divide": (
        entries("unet/config.json", norm_num_groups=5),
        "unet/config.json describes nothing that can be built",
    ),
    "no size": (entries("unet/config.json", sample_size=None), "unet/config.json.*sample_size"),
    "activation": (
        entries("text_encoder/config.json", hidden_act="relu"),
        "text_encoder/config.json.*hidden_act='relu' is not supported",
    ),
    "truncated weights": (truncate, f"{UNET} is not a whole safetensors file"),
    "empty weights": (write(UNET, b""), f"{UNET} is not a whole safetensors file"),
    "only pickles": (pickle, "unet holds no safetensors but pickled weights.*convert"),
    "no weights": (remove(UNET), "unet holds no weights: diffusion_pytorch_model.* is missing"),
    "missing tensor": (
        tensors(lambda held: held.pop("conv_in.weight")),
        "weights in .*unet do not fit.*missing: conv_in/kernel",
    ),
    "surplus tensor": (
        tensors(lambda held: held.update({"stranger.bias": torch.zeros(2)})),
        "weights in .*unet do not fit.*surplus: stranger/bias",
    ),
    "misshaped tensor": (
        tensors(lambda held: held.update({"conv_out.bias": torch.zeros(5)})),
        r"weights in .*unet do not fit.*conv_out/bias \(5,\) instead of \(4,\)",
    ),
    "missing shard": (
        shard("a.safetensors", "b.safetensors"),
        "unet/b.safetensors is missing, though the index",
    ),
    "shard elsewhere": (
        shard("a.safetensors", "../b.safetensors"),
        r"index.json names \.\./b.safetensors",
    ),
    "index without a map": (index_without_map, "index.json has no weight_map"),
    "no vocabulary": (remove("tokenizer"), "tokenizer holds no CLIP vocabulary"),
    "torn vocabulary": (torn_vocabulary, r"tokenizer/(vocab|tokenizer).json is not readable JSON"),
    "no schedule": (remove("scheduler"), "scheduler_config.json is missing"),
    "unknown prediction": (
        entries(SCHEDULER, prediction_type="score"),
        "scheduler_config.json.*'score' in prediction_type is not supported",
    ),
    "unknown betas": (
        entries(SCHEDULER, beta_schedule="sigmoid"),
        "scheduler_config.json.*'sigmoid' in beta_schedule is not supported",
    ),
    "a schedule in words": (
        entries(SCHEDULER, beta_start="low"),
        "scheduler_config.json.*beta_start='low' is not supported",
    ),
    "text of another width": (narrow_text, "unet/config.json: cross_attention_dim=16 is not"),
    "text of fewer words": (few_words, "tokenizer holds .* tokens, but the text encoder"),
    "latents of another autoencoder": (
        wide_latents,
        "unet/config.json: in_channels=4 is not supported, only the 16",
    ),
    "predicted variance": (
        entries("unet/config.json", out_channels=8),
        "unet/config.json: out_channels=8 is not supported",
    ),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_a_malformed_prior_is_told_in_one_sentence(case, pipeline_dir, tmp_path):
    folder = Path(shutil.copytree(pipeline_dir, tmp_path / "copy"))
    corrupt, message = CORRUPTIONS[case]
    corrupt(folder)
    with pytest.raises(PriorError, match=message) as error:
        load_prior(folder)
    assert str(folder) in str(error.value)


def test_every_tensor_that_does_not_fit_is_named_at_once(pipeline_dir, tmp_path):
    folder = Path(shutil.copytree(pipeline_dir, tmp_path / "copy"))
    tensors(lambda held: held.update({"stranger.weight": held.pop("conv_in.weight")}))(folder)
    tensors(lambda held: held.update({"conv_out.bias": torch.zeros(5)}))(folder)
    with pytest.raises(PriorError, match="missing: conv_in/kernel; surplus: stranger.*conv_out"):
        load_prior(folder)
