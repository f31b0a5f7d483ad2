"""Textual inversion (Gal et al., 2022): vectors in files that stand for a new word of a prompt.

diffusers saves a tensor under the word itself, other trainers under a fixed name, and those of SDXL
one for each text tower; the word is then the file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamfusion_jax.diffusion.loading.tensor_files import opened, tensor_specs
from dreamfusion_jax.diffusion.loading.weights import reraise_as_prior_error
from dreamfusion_jax.runtime.errors import PriorError

UNNAMED = "emb_params"
TOWERS = ("clip_l", "clip_g")  # SDXL's, in the order of its text encoders
MAX_VECTORS = 75  # what a prompt of 77 tokens has room for


class Embedding(NamedTuple):
    """A word's vectors.

    Attributes:
      path: the file.
      word: how prompts say it.
      rows: [N, D] for each text tower.
    """

    path: Path
    word: str
    rows: tuple[np.ndarray, ...]

    @property
    def tokens(self) -> list[str]:
        """The word's tokens, one a vector."""
        count = len(self.rows[0])
        return [self.word, *(f"{self.word}_{i}" for i in range(1, count))]


def read_embeddings(paths: Sequence[Path], widths: Sequence[int]) -> list[Embedding]:
    """Reads the words that files hold for text towers of these widths.

    Raises:
      PriorError: a file is missing or broken, or of another model.
    """
    found: dict[str, Embedding] = {}
    for path in paths:
        with reraise_as_prior_error(path, "cannot be read as an embedding"):
            embedding = _read(path, widths)
            if embedding.word in found:
                raise PriorError(
                    f"{found[embedding.word].path} holds the word {embedding.word!r:.100}, too: "
                    "rename one of the files, or leave one out."
                )
            found[embedding.word] = embedding
    return list(found.values())


def _read(path: Path, widths: Sequence[int]) -> Embedding:
    names = list(tensor_specs([path]))
    if len(names) == 1 and names[0] not in TOWERS:
        word = path.stem if names == [UNNAMED] else names[0]
    elif set(names) == set(TOWERS):
        word, names = path.stem, list(TOWERS)
    else:
        raise PriorError(
            f"it holds {len(names)} tensors ({', '.join(names):.200}), not one named as its word,"
            f" nor {' and '.join(TOWERS)}: give an embedding's file."
        )
    if len(names) != len(widths):
        kind = "SDXL" if len(names) > 1 else "a Stable Diffusion with one text encoder"
        raise PriorError(f"it is for {kind}, which this prior is not: give one for this model.")
    if not word.isprintable() or not word or any(letter.isspace() for letter in word):
        raise PriorError(f"its word {word!r:.100} is not one that a prompt can hold: rename it.")
    with opened(path) as file:
        tensors = [file.get_tensor(name) for name in names]
    rows = tuple(map(_rows, tensors, widths))
    if len({len(part) for part in rows}) > 1:
        raise PriorError("it has more vectors for one text encoder than for the other.")
    return Embedding(path, word, rows)


def _rows(tensor: np.ndarray, width: int) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(tensor, np.float32))
    if rows.ndim != 2 or rows.shape[1] != width or not 1 <= len(rows) <= MAX_VECTORS:
        raise PriorError(
            f"it has the shape {np.shape(tensor)}, but this prior's text encoder takes up to "
            f"{MAX_VECTORS} vectors of {width}: give one that was made for this model."
        )
    if not np.all(np.isfinite(rows)):
        raise PriorError("it holds what is no number.")
    return rows
