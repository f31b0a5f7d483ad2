"""Faults of a DeepFloyd IF's files are reported in one sentence, by the name of the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.runtime.errors import PriorError

Spoil = Callable[[Path], object]
UNET, TEXT, SCHEDULER = (
    "unet/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
WEIGHTS = "text_encoder/model.safetensors"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def entries(name: str, **changed: object) -> Spoil:
    """Changes entries of a JSON object."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changed
        (folder / name).write_text(json.dumps(values))

    return spoil


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return spoil


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def sentencepiece(content: bytes | None) -> Spoil:
    """Puts a spiece.model in tokenizer.json's place; None: a folder of that name."""

    def spoil(folder: Path) -> None:
        (folder / "tokenizer" / "tokenizer.json").unlink()
        vocabulary = folder / "tokenizer" / "spiece.model"
        vocabulary.mkdir() if content is None else vocabulary.write_bytes(content)

    return spoil


def few_words(folder: Path) -> None:
    """Leaves the text encoder 99 tokens."""
    entries(TEXT, vocab_size=99)(folder)
    tensors(lambda held: held.update({"shared.weight": held["shared.weight"][:99]}))(folder)


CORRUPTIONS: dict[str, tuple[Spoil, str]] = {
    "second stage": (
        entries("model_index.json", _class_name="IFSuperResolutionPipeline"),
        "model_index.json is of IFSuperResolutionPipeline.*give the first stage",
    ),
    "no text encoder": (
        entries("model_index.json", text_encoder=[None, None]),
        "model_index.json names no text_encoder",
    ),
    "a CLIP by name": (
        entries("model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
        "encoder_hid_dim=24 is not the hidden_size",
    ),
    "text of another width": (
        entries(TEXT, d_model=32),
        "unet/config.json: encoder_hid_dim=24 is not the d_model",
    ),
    "no hidden projection": (
        entries(UNET, encoder_hid_dim=None),
        "unet/config.json.*cross_attention_dim=32 is not the d_model",
    ),
    "projection of images": (
        entries(UNET, encoder_hid_dim_type="image_proj"),
        "unet/config.json.*'image_proj' in encoder_hid_dim_type",
    ),
    "projection of nothing": (
        entries(UNET, encoder_hid_dim=None, encoder_hid_dim_type="text_proj"),
        "unet/config.json.*needs an encoder_hid_dim",
    ),
    "class labels": (entries(UNET, class_embed_type="timestep"), "config.json.*class_embed_type"),
    "six channels in": (entries(UNET, in_channels=6), "unet/config.json: in_channels=6"),
    "nine channels out": (entries(UNET, out_channels=9), "unet/config.json: out_channels=9"),
    "pooling's heads": (
        entries(UNET, addition_embed_type_num_heads=5),
        "unet/config.json.*addition_embed_type_num_heads=5 does not divide",
    ),
    "heads' sizes": (entries(UNET, attention_head_dim=12), "attention_head_dim=12.*not divide"),
    "text groups": (entries(UNET, cross_attention_dim=40), "cross_attention_dim=40 is not a mult"),
    "other blocks": (
        entries(UNET, mid_block_type="UNetMidBlock1D"),
        "unet/config.json.*'UNetMidBlock1D' in mid_block_type",
    ),
    "no layers": (entries(TEXT, num_layers=0), "text_encoder/config.json.*num_layers=0"),
    "endless layers": (entries(TEXT, num_layers=10**9), "text_encoder/config.json.*num_layers"),
    "another activation": (
        entries(TEXT, feed_forward_proj="gated-silu"),
        "text_encoder/config.json.*'gated-silu' in feed_forward_proj",
    ),
    "torn text config": (write(TEXT, b"{"), "text_encoder/config.json is not readable JSON"),
    "no text weights": (remove(WEIGHTS), "text_encoder holds no weights"),
    "torn text weights": (write(WEIGHTS, b"\x10"), "text_encoder/.*not a whole safetensors file"),
    "missing bias": (
        tensors(lambda held: held.pop(BIAS)),
        "weights in .*text_encoder do not fit.*missing: .*relative_attention_bias/embedding",
    ),
    "a decoder": (
        tensors(lambda held: held.update({"decoder.final_layer_norm.weight": np.ones(24)})),
        "weights in .*text_encoder do not fit.*surplus: decoder/final_layer_norm",
    ),
    "no embedding": (
        tensors(lambda held: held.pop("shared.weight")),
        "weights in .*text_encoder do not fit.*missing: shared/embedding",
    ),
    "other buckets": (
        entries(TEXT, relative_attention_num_buckets=16),
        r"relative_attention_bias/embedding \(32, 4\) instead of \(16, 4\)",
    ),
    "fewer words": (
        few_words,
        "tokenizer holds .* tokens, but the text encoder beside it knows 99",
    ),
    "no vocabulary": (
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        "tokenizer holds no T5 vocabulary",
    ),
    "torn vocabulary": (write("tokenizer/tokenizer.json", b"{"), "tokenizer.json is not readable"),
    "strange vocabulary": (write("tokenizer/tokenizer.json", b"{}"), "not a T5Tokenizer's direct"),
    "sentencepiece that is none": (sentencepiece(b"no"), "tokenizer"),
    "sentencepiece that is a folder": (sentencepiece(None), "spiece.model cannot be read"),
    "thresholding": (
        entries(SCHEDULER, dynamic_thresholding_ratio=2.0),
        "scheduler_config.json.*dynamic_thresholding_ratio=2.0",
    ),
    "threshold below one": (
        entries(SCHEDULER, sample_max_value=0.5),
        "scheduler_config.json.*sample_max_value=0.5",
    ),
    "offset in words": (
        entries(SCHEDULER, steps_offset="one"),
        "scheduler_config.json describes nothing",
    ),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_a_malformed_floyd_is_told_in_one_sentence(case, floyd_dir, tmp_path):
    folder = Path(shutil.copytree(floyd_dir, tmp_path / "copy"))
    spoil, message = CORRUPTIONS[case]
    spoil(folder)
    with pytest.raises(PriorError, match=message) as error:
        load_prior(folder)
    assert str(folder) in str(error.value)
