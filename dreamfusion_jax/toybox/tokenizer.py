"""A CLIP tokenizer whose vocabulary gives every word of the toybox one token."""

from __future__ import annotations

import json
import pathlib

import tokenizers

from dreamfusion_jax.toybox import captions

MAX_LENGTH = 24
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def write(directory: pathlib.Path, base: pathlib.Path | None = None) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json as transformers' CLIPTokenizer.

    As in CLIP, the vocabulary is all bytes, all bytes at a word's end, the two special tokens, and
    the merges' results; text that the toybox never saw falls back to bytes. A vocabulary that is
    there and knows every word is kept.

    Args:
      base: a directory with a vocabulary to extend, whose tokens keep their numbers: networks were
        trained on them. None: starts from the bytes.
    """
    if _knows_every_word(directory / "vocab.json"):
        return
    pieces, merges = _read(base) if base else (_alphabet(), [])
    for word in captions.vocabulary():
        merges += _missing_merges(word, {pair: rank for rank, pair in enumerate(merges)})
    numbered = dict(pieces)
    for left, right in merges:
        numbered.setdefault(left + right, len(numbered))
    directory.mkdir(parents=True, exist_ok=True)
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
    """Returns the entries of a CLIPTextConfig that the tokenizer decides."""
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


def _alphabet() -> dict[str, int]:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + _WORD_END for letter in letters), _START, _END]
    return {piece: index for index, piece in enumerate(pieces)}


def _read(directory: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = (directory / "merges.txt").read_text().splitlines()[1:]
    pairs = [line.split() for line in lines if line]
    return json.loads((directory / "vocab.json").read_text()), [(a, b) for a, b in pairs]


def _missing_merges(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """Returns the merges that make one token of what `ranks` leaves of a word, from its left.

    Other words stay as they are: merges that come later are of a lower rank.
    """
    pieces = [*word[:-1], word[-1] + _WORD_END]
    while True:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        first = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)), default=None)
        if first is None or first not in ranks:
            break
        at = pairs.index(first)
        pieces[at : at + 2] = ["".join(first)]
    merges, left = [], pieces[0]
    for right in pieces[1:]:
        merges.append((left, right))
        left += right
    return merges
