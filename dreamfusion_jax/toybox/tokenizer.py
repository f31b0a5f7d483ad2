"""A CLIP tokenizer whose vocabulary gives every word of the toybox one token."""

from __future__ import annotations

import json
import pathlib

import tokenizers

from dreamfusion_jax.toybox import captions

MAX_LENGTH = 24
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def write(directory: pathlib.Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json as transformers' CLIPTokenizer.

    As in CLIP, the vocabulary is all bytes, all bytes at a word's end, the merges' results, and the
    two special tokens last; text that the toybox never saw falls back to bytes. A vocabulary that
    is there and knows every word is kept: networks were trained on its numbers, and the trainer of
    merges breaks ties differently each time.
    """
    if _knows_every_word(directory / "vocab.json"):
        return
    merges = _merges(captions.vocabulary())
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    pieces += [left + right for left, right in merges]
    vocabulary = dict.fromkeys([*pieces, _START, _END])
    directory.mkdir(parents=True, exist_ok=True)
    numbered = {piece: index for index, piece in enumerate(vocabulary)}
    (directory / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def sizes(directory: pathlib.Path) -> dict[str, int]:
    """The entries of a CLIPTextConfig that the tokenizer decides."""
    vocabulary = json.loads((directory / "vocab.json").read_text())
    return {
        "vocab_size": len(vocabulary),
        "bos_token_id": vocabulary[_START],
        "eos_token_id": vocabulary[_END],
        "pad_token_id": vocabulary[_END],
        "max_position_embeddings": MAX_LENGTH,
    }


def _knows_every_word(vocabulary: pathlib.Path) -> bool:
    if not vocabulary.exists():
        return False
    pieces = json.loads(vocabulary.read_text())
    return all(word + _WORD_END in pieces for word in captions.vocabulary())


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that reduce each of `words` to a single token."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix=_WORD_END))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix=_WORD_END, show_progress=False
    )
    model.train_from_iterator(words, trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
