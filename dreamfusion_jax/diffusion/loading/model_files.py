"""The files of a model's directory: which hold its weights, what its JSON says, and a digest.

A file that the machine refuses to read is not called broken: it may be intact.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dreamfusion_jax.runtime.errors import PriorError
from dreamfusion_jax.runtime.files import read_json

NETWORKS = ("unet", "vae", "text_encoder")
FILE_STEMS = ("diffusion_pytorch_model", "model")


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
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def pipeline_digest(path: str | Path, variant: str = "") -> str:
    """Returns the SHA-256 of what `load_prior` reads: weights, configurations, the vocabulary."""
    path, digest = Path(path), hashlib.sha256()
    for network in NETWORKS:
        if (path / network).is_dir():
            digest.update(weights_digest(path / network, variant).encode())
            digest.update(_meaning(read_config(path / network)))
    digest.update(_meaning(read_config(path / "scheduler", "scheduler_config.json")))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        file = path / "tokenizer" / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _meaning(config: dict[str, Any]) -> bytes:
    """Returns a configuration without what only tells its origin, such as _diffusers_version."""
    said = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.dumps(said, sort_keys=True).encode()


def weights_files(directory: Path, variant: str = "") -> list[Path]:
    """Returns a network's one file, or the shards that its index names; full precision first."""
    for suffix in [f".{variant}"] if variant else ["", ".fp16"]:
        for stem in FILE_STEMS:
            path = directory / f"{stem}{suffix}.safetensors"
            if path.is_file():
                return [path]
            index = f"{stem}.safetensors.index{suffix}.json"
            if (directory / index).is_file():
                return _shards(directory, index)
    if any(any(directory.glob(pattern)) for pattern in ("*.bin", "*.ckpt", "*.pt", "*.msgpack")):
        raise PriorError(
            f"{directory} holds no safetensors but pickled weights, which can run any code when "
            "they are read: convert them, by loading them in diffusers where you trust them and "
            "save_pretrained."
        )
    wanted = " or ".join(f"{stem}{f'.{variant}' * bool(variant)}" for stem in FILE_STEMS)
    raise PriorError(f"{directory} holds no weights: {wanted}.safetensors is missing.")


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
