"""The folder of a prompt: its words, and a short hash where these do not tell prompts apart."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dreamfusion_jax.runtime.files import read_json

_MAX_LETTERS = 80
_MAX_BYTES = 240  # most file systems allow 255
_UNTITLED = "untitled"


def slug(prompt: str) -> str:
    """Returns the folder name of a prompt: its lower-case words joined by hyphens.

    A name that is shortened, or has no words, ends with a hash of the prompt.
    """
    words = "-".join(re.findall(r"[^\W_]+", normalized(prompt).lower()))
    if words and words == _cut(words, 0):
        return words
    return hashed_slug(prompt)


def hashed_slug(prompt: str) -> str:
    """Returns the folder name of a prompt whose `slug` another prompt has taken."""
    words = "-".join(re.findall(r"[^\W_]+", normalized(prompt).lower()))
    end = "-" + hashlib.sha256(normalized(prompt).encode()).hexdigest()[:8]
    return (_cut(words, len(end)).strip("-") or _UNTITLED) + end


def folder_names(prompts: Sequence[str]) -> list[str]:
    """Returns a folder name for each prompt, all different where the prompts are."""
    names: list[str] = []
    for prompt in prompts:
        name = slug(prompt)
        names.append(hashed_slug(prompt) if name in names else name)
    return names


def free_folder(root: Path, prompt: str) -> Path:
    """Returns the folder of a prompt below `root` that holds no run of another prompt."""
    folder = root / slug(prompt)
    stored = _stored_prompt(folder)
    if stored is None or normalized(stored) == normalized(prompt):
        return folder
    return root / hashed_slug(prompt)


def normalized(prompt: str) -> str:
    """Returns the prompt in the one spelling that Unicode has for what looks and means the same."""
    return unicodedata.normalize("NFC", prompt)


def _cut(words: str, room: int) -> str:
    # File systems count bytes, and a character may take four.
    letters = words[: _MAX_LETTERS - room].encode()
    return letters[: _MAX_BYTES - room].decode(errors="ignore")


def _stored_prompt(folder: Path) -> str | None:
    """Reads the prompt of the run in a folder; None where there is none that can be read."""
    try:
        prompt = read_json(folder / "config.json")["train"]["prompt"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return prompt if isinstance(prompt, str) else None
