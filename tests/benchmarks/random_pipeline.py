"""Writes a full-size pipeline of random weights, where real ones are not available.

  python -m tests.benchmarks.random_pipeline --model=1.5 --output=workdir/random-1.5
  python -m tests.benchmarks.random_pipeline --model=if-xl --dtype=float16 --output=workdir/if-xl

Its samples are noise; its time and memory are those of the real model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from absl import app, flags

from tests.floyd import IF_L, IF_M, IF_XL, write_random
from tests.pipelines import MODELS, write_pipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16}

FLOYD = {"if-m": IF_M, "if-l": IF_L, "if-xl": IF_XL}
_MODEL = flags.DEFINE_enum("model", "1.5", [*MODELS, *FLOYD], "Which model.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Number format of the files.")


def main(_: list[str]) -> None:
    folder = Path(_OUTPUT.value)
    if _MODEL.value in FLOYD:
        write_random(folder, FLOYD[_MODEL.value], _DTYPE.value)
    else:
        write_pipeline(folder, _MODEL.value, DTYPES[_DTYPE.value])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"Wrote {size / 1e9:.2f} GB to {folder}.")


if __name__ == "__main__":
    app.run(main)
