"""Loads a pipeline's T5, and reads prompts with it one layer at a time.

T5-XXL has 4.7 billion parameters and runs once, before the first step. So no more of it than one
layer is ever in memory, in float32; the next layer is read from the file when its turn comes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.diffusion.loading.model_files import weights_files
from dreamfusion_jax.diffusion.loading.names import params_from_torch
from dreamfusion_jax.diffusion.loading.tensor_files import locate_tensors, read_rows, tensor_specs
from dreamfusion_jax.diffusion.loading.text_encoder import check_tokenizer_files, warn_truncation
from dreamfusion_jax.diffusion.loading.weights import (
    check_params,
    read_tensors,
    reraise_as_prior_error,
)
from dreamfusion_jax.diffusion.models.t5 import T5Block, T5EncoderModel, rms_norm
from dreamfusion_jax.diffusion.priors.prior import Condition, EncodeText
from dreamfusion_jax.diffusion.priors.unet_predictor import float32_products
from dreamfusion_jax.runtime.errors import PriorError
from dreamfusion_jax.runtime.files import require_regular
from dreamfusion_jax.runtime.progress import Progress

MAX_LENGTH = 77  # tokens; DeepFloyd IF was trained with as many
MAX_BATCH = 32  # prompts that go through a layer together
SLOW_BYTES = 10**9  # of the weights' files; reading as many is worth a progress bar
EMBEDDING, TIED_EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"
MAX_VOCABULARY_BYTES = 2**25

Tokenize = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def load_t5_encoder(path: str | Path, model: T5EncoderModel, variant: str = "") -> EncodeText:
    """Loads a pipeline's tokenizer, and checks the weights of its T5 without reading them.

    Returns:
      prompts -> last hidden states [B, 77, D] in float32, as IFPipeline.encode_prompt returns them.
      It remembers what it returned; prompts in one call share one pass over the files.
    """
    path = Path(path)
    located = _locate_checked(model, path / "text_encoder", variant)
    tokenize = load_t5_tokenizer(path / "tokenizer", model.vocab_size)
    remembered: dict[str, np.ndarray] = {}

    def encode_text(prompts: Sequence[str]) -> Condition:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in remembered]
        for start in range(0, len(new), MAX_BATCH):
            batch = new[start : start + MAX_BATCH]
            states = hidden_states(model, located, *tokenize(batch))
            remembered.update(zip(batch, np.asarray(states), strict=True))
        return Condition(jnp.asarray(np.stack([remembered[prompt] for prompt in prompts])))

    return encode_text


def hidden_states(
    model: T5EncoderModel, located: Mapping[str, Path], ids: np.ndarray, mask: np.ndarray
) -> jax.Array:
    """Maps ids [B, L] and mask [B, L] to hidden states [B, L, D], with one layer in memory."""
    options, precision = model.layer_options, float32_products(model.dtype, "highest")
    first, later = (jax.jit(T5Block(options, bias).apply) for bias in (True, False))
    embedding = EMBEDDING if EMBEDDING in located else TIED_EMBEDDING
    rows = read_rows(located[embedding], embedding, ids.reshape(-1))
    h, bias = jnp.asarray(rows.reshape(*ids.shape, -1)), None
    size = sum(file.stat().st_size for file in set(located.values()))
    slow = size > SLOW_BYTES
    with precision, Progress(model.num_layers, "reading the prompts", "layer", shown=slow) as shown:
        for i in range(model.num_layers):
            params = read_tensors(located, f"encoder.block.{i}.", jnp.asarray)
            h, bias = (later if i else first)({"params": params}, h, mask, bias)
            jax.block_until_ready(h)
            del params
            shown.update()
    norm = read_tensors(located, "encoder.final_layer_norm.")
    return rms_norm(options, None).apply({"params": norm}, h)


def _locate_checked(model: T5EncoderModel, directory: Path, variant: str) -> dict[str, Path]:
    """Returns the file of each tensor. Raises a PriorError unless they fit the network."""
    files = weights_files(directory, variant)
    specs = tensor_specs(files)
    if TIED_EMBEDDING in specs:  # the same matrix under a second name
        specs.setdefault(EMBEDDING, specs[TIED_EMBEDDING])
        del specs[TIED_EMBEDDING]
    with reraise_as_prior_error(directory, "holds weights whose names fit no network"):
        params = params_from_torch(specs)
    check_params(model, params, directory)
    return locate_tensors(files)


def load_t5_tokenizer(directory: str | Path, vocab_size: int) -> Tokenize:
    """Loads a tokenizer: prompts -> ids [B, 77] below `vocab_size`, and mask [B, 77].

    Prompts are lowercased, padded and truncated as by IFPipeline.

    Raises:
      PriorError: the directory holds no such tokenizer, or refers to files elsewhere, or a package
        that reads it is missing.
    """
    directory = Path(directory)
    check_tokenizer_files(directory)
    _check_vocabulary(directory)
    from transformers import T5Tokenizer  # slow to import, so only where a prior is loaded

    def tokenize_with(tokenizer: Any, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        prompts = [prompt.lower().strip() for prompt in prompts]
        warn_truncation(tokenizer, prompts, MAX_LENGTH)
        found = tokenizer(prompts, padding="max_length", max_length=MAX_LENGTH, truncation=True)
        shape = len(prompts), MAX_LENGTH
        ids, mask = (found[name] for name in ("input_ids", "attention_mask"))
        return np.asarray(ids, np.int32).reshape(shape), np.asarray(mask, bool).reshape(shape)

    try:
        tokenizer = T5Tokenizer.from_pretrained(str(directory))
        largest_id = max(tokenizer.get_vocab().values())
        tokenize_with(tokenizer, ["", "a"])
    except Exception as error:  # transformers raises errors of any type on a broken file
        raise PriorError(f"{directory} is not a T5Tokenizer's directory ({error}).") from None
    if max(largest_id, len(tokenizer) - 1) >= vocab_size:
        raise PriorError(
            f"{directory} holds {largest_id + 1} tokens, but the text encoder beside it knows "
            f"{vocab_size}: they are from different pipelines."
        )
    return lambda prompts: tokenize_with(tokenizer, prompts)


def _check_vocabulary(directory: Path) -> None:
    """Raises a PriorError without a vocabulary, or without the packages that read it."""
    if (directory / "tokenizer.json").is_file():
        return
    vocabulary = directory / "spiece.model"
    if not vocabulary.exists():
        raise PriorError(
            f"{directory} holds no T5 vocabulary (spiece.model or tokenizer.json): download it."
        )
    try:
        require_regular(vocabulary)
    except ValueError as error:
        raise PriorError(f"{vocabulary} cannot be read ({error}).") from None
    if vocabulary.stat().st_size > MAX_VOCABULARY_BYTES:
        raise PriorError(f"{vocabulary} is larger than any vocabulary: download it again.")
    packages = ("sentencepiece", "google.protobuf")
    if not all(_is_installed(package) for package in packages):
        raise PriorError(
            f"{vocabulary} is read by two packages that are not installed: "
            "pip install sentencepiece protobuf."
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package above it
        return False
