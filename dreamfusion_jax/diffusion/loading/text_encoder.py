"""Loads a pipeline's tokenizer and text encoder."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamfusion_jax.diffusion.loading.model_files import read_config
from dreamfusion_jax.diffusion.loading.weights import load_params
from dreamfusion_jax.diffusion.models.clip import CLIPTextModel
from dreamfusion_jax.diffusion.priors.prior import Condition, EncodeText
from dreamfusion_jax.diffusion.priors.unet_predictor import float32_products
from dreamfusion_jax.runtime.errors import PriorError
from dreamfusion_jax.runtime.files import read_text

TOKENIZER_JSON = (
    *("tokenizer.json", "vocab.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
# Entries of tokenizer_config.json by which transformers would open a file anywhere.
EXTERNAL_FILE_KEYS = ("fast_tokenizer_files", "gguf_file", "init_inputs", "merges", "vocab")
MAX_NOTE_LENGTH = 300
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def load_text_encoder(
    path: str | Path, text_encoder: CLIPTextModel, variant: str = ""
) -> EncodeText:
    """Loads a pipeline's tokenizer and the params of its text encoder.

    Returns:
      prompts -> last hidden states [B, L, D] in float32, padded to the tokenizer's full length.
    """
    path = Path(path)
    params = load_params(text_encoder, path / "text_encoder", text_encoder.dtype, variant)
    tokenize = load_tokenizer(
        path / "tokenizer", text_encoder.max_position_embeddings, text_encoder.vocab_size
    )

    @jax.jit
    def apply(params: Any, ids: jax.Array) -> jax.Array:
        with float32_products(text_encoder.dtype, "highest"):
            return text_encoder.apply({"params": params}, ids).last

    return lambda prompts: Condition(apply(params, tokenize(prompts)))


def load_tokenizer(
    directory: str | Path, max_length: int, vocab_size: int | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """Loads a tokenizer: prompts -> ids [B, L] below `vocab_size`.

    Prompts are padded and truncated as by StableDiffusionPipeline.

    Raises:
      PriorError: the directory holds no such tokenizer, or refers to files elsewhere.
    """
    directory = Path(directory)
    check_tokenizer_files(directory)
    if not (directory / "tokenizer.json").is_file():
        if not (directory / "vocab.json").is_file():
            raise PriorError(f"{directory} holds no CLIP vocabulary (vocab.json and merges.txt).")
        _check_text(directory / "merges.txt")
    tokenizer_class = _clip_tokenizer()
    try:
        tokenizer = tokenizer_class.from_pretrained(str(directory))
        length = min(int(tokenizer.model_max_length), max_length)
        largest_id = max(tokenizer.get_vocab().values())

        def tokenize(prompts: Sequence[str]) -> np.ndarray:
            warn_truncation(tokenizer, prompts, length)
            ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
            return np.asarray(ids["input_ids"], np.int32).reshape(len(prompts), length)

        tokenize([""])  # Other faults show here, or at the first unknown letter.
        if tokenizer.backend_tokenizer.model.token_to_id(str(tokenizer.unk_token)) is None:
            raise ValueError(f"its unk_token, {tokenizer.unk_token}, is not in its vocabulary")
    except Exception as error:  # transformers raises errors of any type on a broken file
        raise PriorError(f"{directory} is not a CLIPTokenizer's directory ({error}).") from None
    if vocab_size is not None and max(largest_id, len(tokenizer) - 1) >= vocab_size:
        raise PriorError(
            f"{directory} holds {largest_id + 1} tokens, but the text encoder beside it knows "
            f"{vocab_size}: they are from different pipelines."
        )
    return tokenize


def _clip_tokenizer() -> Any:
    """Imports the class without the advice, at every start, to install PyTorch."""
    before = os.environ.get(_NO_ADVICE)
    os.environ[_NO_ADVICE] = "1"
    try:
        from transformers import CLIPTokenizer  # slow, so only where a prior is loaded
    finally:
        os.environ.pop(_NO_ADVICE)
        if before is not None:
            os.environ[_NO_ADVICE] = before
    return CLIPTokenizer


def check_tokenizer_files(directory: Path) -> None:
    """Refuses files of no end, such as devices, and any that refer to files elsewhere."""
    for name in TOKENIZER_JSON:
        if (directory / name).exists():
            for key in read_config(directory, name):
                if _references_external_file(name, key):
                    raise PriorError(f"{directory / name}: {key!r:.200} is not supported.")
    for path in directory.rglob("*.jinja"):
        _check_text(path)


def _check_text(path: Path) -> None:
    try:
        read_text(path)
    except (OSError, ValueError) as error:
        raise PriorError(f"{path} cannot be read ({error}).") from None


def _references_external_file(name: str, key: str) -> bool:
    if name == "special_tokens_map.json":
        return not key.endswith(("_token", "_tokens"))
    return name == "tokenizer_config.json" and key in EXTERNAL_FILE_KEYS


def warn_truncation(tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Warns of the part of the first too long prompt that the text encoder does not read."""
    for prompt in prompts:
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        if len(ids) > length:
            _warn_once(length, tokenizer.decode(ids[length - 1 : -1]))
            return


@functools.cache  # once, however often the prompt is encoded
def _warn_once(length: int, rest: str) -> None:
    if len(rest) > MAX_NOTE_LENGTH:
        rest = f"{rest[: MAX_NOTE_LENGTH // 2]} ... {rest[-MAX_NOTE_LENGTH // 2 :]}"
    print(f"Note: the text encoder reads {length} tokens; it ignores {rest!r}.", file=sys.stderr)
