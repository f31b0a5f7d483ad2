"""Loads a pipeline's tokenizer and text encoder."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamfusion_jax.diffusion.loading.embedding_files import Embedding
from dreamfusion_jax.diffusion.loading.model_files import read_config
from dreamfusion_jax.diffusion.loading.weights import Source, load_source
from dreamfusion_jax.diffusion.models.clip import (
    LEGACY_EOS_TOKEN_ID,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    TextStates,
)
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


class Tower(NamedTuple):
    """A CLIP that reads texts, before its weights are read.

    Attributes:
      module: the network.
      source: of its weights.
      tokenizer: a CLIPTokenizer's directory.
      pads_with_zero: whether the vocabulary's first token fills up a text, as in OpenCLIP, or what
        the directory says.
      words: new words and the vectors that stand for them.
      place: which of a word's vectors are this tower's.
    """

    module: CLIPTextModel | CLIPTextModelWithProjection
    source: Source
    tokenizer: Path
    pads_with_zero: bool = False
    words: Sequence[Embedding] = ()
    place: int = 0

    @property
    def text_config(self) -> CLIPTextModel:
        """The network without its projection."""
        if isinstance(self.module, CLIPTextModelWithProjection):
            return self.module.text_config
        return self.module


def load_text_encoder(tower: Tower) -> EncodeText:
    """Loads a tokenizer and the params of its text encoder.

    Returns:
      prompts -> last hidden states [B, L, D] in float32, padded to the tokenizer's full length.
    """
    read = load_tower(tower)
    return lambda prompts: Condition(read(prompts).last)


def load_tower(tower: Tower) -> Callable[[Sequence[str]], TextStates]:
    """Returns prompts -> hidden states, in float32."""
    text, module = tower.text_config, tower.module
    params = load_source(module, tower.source, module.dtype)
    tokenizer = load_tokenizer(
        tower.tokenizer, text.max_position_embeddings, text.vocab_size, tower.pads_with_zero
    )
    if tower.words:
        ids = tokenizer.add(tower.words)
        rows = np.concatenate([word.rows[tower.place] for word in tower.words])
        module, params = _with_rows(module, params, ids, rows)

    @jax.jit
    def apply(params: Any, ids: jax.Array) -> TextStates:
        with float32_products(module.dtype, "highest"):
            return module.apply({"params": params}, ids)

    return lambda prompts: apply(params, tokenizer(prompts))


def _with_rows(module: Any, params: Any, ids: Sequence[int], rows: np.ndarray) -> tuple[Any, Any]:
    """Returns a text tower with new rows [N, D] at `ids` of its vocabulary."""
    text = module if isinstance(module, CLIPTextModel) else module.text_config
    params = jax.tree.map(lambda leaf: leaf, params)  # a copy of the dictionaries
    holder = (params if text is module else params["text_model"])["embeddings"]["token_embedding"]
    held = np.asarray(holder["embedding"])
    table = np.zeros((max(len(held), max(ids) + 1), held.shape[1]), held.dtype)
    table[: len(held)] = held
    table[np.asarray(ids)] = rows
    holder["embedding"] = table
    end = text.eos_token_id
    if end == LEGACY_EOS_TOKEN_ID:  # The end was the largest id, and is so no longer.
        end = text.vocab_size - 1
    text = text.clone(vocab_size=len(table), eos_token_id=end)
    return (text if isinstance(module, CLIPTextModel) else module.clone(text_config=text)), params


class ClipTokenizer:
    """Maps prompts to ids [B, L], padded and truncated as by StableDiffusionPipeline."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._spelled: dict[str, str] = {}  # words of several tokens

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        for word, tokens in self._spelled.items():
            prompts = [prompt.replace(word, tokens) for prompt in prompts]
        warn_truncation(self._tokenizer, prompts, self._length)
        ids = self._tokenizer(
            list(prompts), padding="max_length", max_length=self._length, truncation=True
        )
        return np.asarray(ids["input_ids"], np.int32).reshape(len(prompts), self._length)

    def add(self, words: Sequence[Embedding]) -> list[int]:
        """Adds words; returns the ids of their tokens. Raises a PriorError for one it has."""
        for word in words:
            known = self._tokenizer.get_vocab()
            if taken := [token for token in word.tokens if token in known]:
                raise PriorError(
                    f"{word.path}: its word {taken[0]!r:.100} is a token already: rename it."
                )
            self._tokenizer.add_tokens(word.tokens)
            if len(word.tokens) > 1:
                self._spelled[word.word] = " ".join(word.tokens)
        tokens = [token for word in words for token in word.tokens]
        return self._tokenizer.convert_tokens_to_ids(tokens)


def load_tokenizer(
    directory: str | Path,
    max_length: int,
    vocab_size: int | None = None,
    pads_with_zero: bool = False,
) -> ClipTokenizer:
    """Loads a tokenizer: prompts -> ids [B, L] below `vocab_size`.

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
        if pads_with_zero:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
        length = min(int(tokenizer.model_max_length), max_length)
        largest_id = max(tokenizer.get_vocab().values())
        tokenize = ClipTokenizer(tokenizer, length)
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
