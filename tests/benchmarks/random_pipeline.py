"""Writes a full-size pipeline of random weights, where real ones are not available.

  python -m tests.benchmarks.random_pipeline --model=1.5 --output=workdir/random-1.5
  python -m tests.benchmarks.random_pipeline --model=if-xl --dtype=float16 --output=workdir/if-xl
  python -m tests.benchmarks.random_pipeline --model=1.5-single-file --output=workdir/single

The last writes model.safetensors, to be given as --prior, beside its tokenizer. Samples are noise;
time and memory are those of the real model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from absl import app, flags

from tests import floyd, mvdream, xl
from tests.pipelines import MODELS, write_clip_tokenizer, write_pipeline
from tests.single_files import write_single_file

DTYPES = {"float32": torch.float32, "float16": torch.float16}

FLOYD = {"if-m": floyd.IF_M, "if-l": floyd.IF_L, "if-xl": floyd.IF_XL}
OTHERS = ("sdxl", "mvdream", "1.5-single-file")
_MODEL = flags.DEFINE_enum("model", "1.5", [*MODELS, *FLOYD, *OTHERS], "Which model.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Number format of the files.")


def write(folder: Path, model: str, dtype: str) -> None:
    """Writes the model that is named."""
    if model in FLOYD:
        floyd.write_random(folder, FLOYD[model], dtype)
    elif model == "sdxl":
        xl.write_random(folder, dtype)
    elif model == "mvdream":
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            write_pipeline(Path(name) / "base", "2.1-base", DTYPES[dtype])
            mvdream.from_sd2(Path(name) / "base", None, folder)
    elif model == "1.5-single-file":
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            write_pipeline(Path(name) / "base", "1.5", DTYPES[dtype])
            write_clip_tokenizer(folder / "tokenizer")
            write_single_file(Path(name) / "base", folder / "model.safetensors")
    else:
        write_pipeline(folder, model, DTYPES[dtype])


def main(_: list[str]) -> None:
    folder = Path(_OUTPUT.value)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write(folder, _MODEL.value, _DTYPE.value)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"Wrote {size / 1e9:.2f} GB to {folder}.")


if __name__ == "__main__":
    app.run(main)
