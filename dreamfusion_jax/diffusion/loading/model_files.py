"""The files of a model's directory: which hold its weights, what its JSON says, and a digest.

A file that the machine refuses to read is not called broken: it may be intact.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from dreamfusion_jax.runtime.errors import PriorError
from dreamfusion_jax.runtime.files import read_json

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
FILE_STEMS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def read_config(directory: str | Path, name: str = "config.json") -> dict[str, Any]:
    """Parses a file that holds a JSON object; raises PriorError where it is missing or broken."""
    path = Path(directory) / name
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise PriorError(f"{path} is missing: expected a diffusers-layout directory.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise PriorError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(config, dict):
        raise PriorError(f"{path} does not hold a JSON object.")
    return config


def unreadable(path: Path, error: Exception) -> PriorError:
    """Builds the error for a file that may be intact: the machine refuses to read it."""
    reason = getattr(error, "strerror", None) or error
    return PriorError(f"{path} cannot be read ({reason}): check its permissions and the disk.")


def weights_digest(directory: str | Path, variant: str = "") -> str:
    """Returns the SHA-256, in hexadecimal, of the weights files that are read of a network."""
    digest = hashlib.sha256()
    for path in weights_files(Path(directory), variant):
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256, in hexadecimal, of a file."""
    stat = path.stat()
    return _file_digest(path, stat.st_size, stat.st_mtime_ns).hex()


@functools.lru_cache(maxsize=64)  # A large text encoder is asked for twice.
def _file_digest(path: Path, size: int, mtime_ns: int) -> bytes:
    """Returns the SHA-256 of a file that has not changed since it had this size and time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def text_encoder_digest(path: str | Path, variant: str = "") -> str:
    """Returns the SHA-256 of what decides how a pipeline's text encoder reads a prompt."""
    path, digest = Path(path), hashlib.sha256()
    _update_with_network(digest, path / "text_encoder", variant)
    _update_with_tokenizer(digest, path / "tokenizer")
    return digest.hexdigest()


def pipeline_digest(path: str | Path, variant: str = "") -> str:
    """Returns the SHA-256 of what `load_prior` reads: weights, configurations, the vocabulary.

    Of a checkpoint in one file, which all share one vocabulary, it is the file's.
    """
    path, digest = Path(path), hashlib.sha256()
    if path.is_file():
        return file_digest(path)
    for network in NETWORKS:
        if (path / network).is_dir():
            _update_with_network(digest, path / network, variant)
    digest.update(_meaning(read_config(path / "scheduler", "scheduler_config.json")))
    _update_with_tokenizer(digest, path / "tokenizer")
    if (path / "tokenizer_2").is_dir():
        _update_with_tokenizer(digest, path / "tokenizer_2")
    return digest.hexdigest()


def _update_with_network(digest: Any, directory: Path, variant: str) -> None:
    digest.update(weights_digest(directory, variant).encode())
    digest.update(_meaning(read_config(directory)))


def _update_with_tokenizer(digest: Any, directory: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model"):
        file = directory / name
        digest.update(file.read_bytes() if file.is_file() else b"")


def _meaning(config: dict[str, Any]) -> bytes:
    """Returns a configuration without what only tells its origin, such as _diffusers_version."""
    said = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.dumps(said, sort_keys=True).encode()


def weights_files(directory: Path, variant: str = "") -> list[Path]:
    """Returns a network's one file, or the shards that its index names.

    Where there is no such variant, others are returned, full precision first.
    """
    for kind in dict.fromkeys((variant, "", "fp16")):
        if files := variant_files(directory, kind):
            if variant and kind != variant:
                _note_other_variant(directory.parent, variant)
            return files
    if any(any(directory.glob(pattern)) for pattern in ("*.bin", "*.ckpt", "*.pt", "*.msgpack")):
        raise PriorError(
            f"{directory} holds no safetensors but pickled weights, which can run any code when "
            "they are read: convert them, by loading them in diffusers where you trust them and "
            "save_pretrained."
        )
    wanted = " or ".join(f"{stem}.safetensors" for stem in FILE_STEMS)
    raise PriorError(f"{directory} holds no weights: {wanted} is missing.")


def variant_files(directory: Path, variant: str) -> list[Path]:
    """Returns the files of one variant of a network; none where there is no such variant."""
    for stem in FILE_STEMS:
        if (path := directory / _single(stem, variant)).is_file():
            return [path]
        for index in _indices(stem, variant):
            if (directory / index).is_file():
                return _shards(directory, index)
    return []


def weights_patterns(variant: str) -> list[str]:
    """Returns patterns of the names that the weights of a variant may have."""
    patterns: list[str] = []
    for stem in FILE_STEMS:
        patterns += [_single(stem, variant), *_indices(stem, variant)]
        # Of the two ways to name a variant's shards, the second is of older versions of diffusers.
        patterns += [
            f"{stem}{_suffix(variant)}-*-of-?????.safetensors",
            f"{stem}-*-of-?????{_suffix(variant)}.safetensors",
        ]
    return list(dict.fromkeys(patterns))


def _single(stem: str, variant: str) -> str:
    return f"{stem}{_suffix(variant)}.safetensors"


def _indices(stem: str, variant: str) -> list[str]:
    suffix = _suffix(variant)
    names = (f"{stem}.safetensors.index{suffix}.json", f"{stem}.safetensors{suffix}.index.json")
    return list(dict.fromkeys(names))


def _suffix(variant: str) -> str:
    return f".{variant}" if variant else ""


@functools.cache  # once, however many networks lack it and however often they are read
def _note_other_variant(pipeline: Path, variant: str) -> None:
    print(
        f"Note: not all weights in {pipeline} come as {variant}; the others are read as they are.",
        file=sys.stderr,
    )


def _shards(directory: Path, index: str) -> list[Path]:
    weight_map = read_config(directory, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PriorError(f"{directory / index} has no weight_map that names the shards.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A file elsewhere is not part of the pipeline; one of another format may be a pickle.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise PriorError(
                f"{directory / index} names {name:.200}, which is not a safetensors file beside it."
            )
    return [directory / name for name in names]
