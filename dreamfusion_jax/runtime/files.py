"""Paths on a local disk or in a bucket, text files of unknown origin, atomic writes.

A faulty file raises a ValueError or an OSError whose message is a phrase; the caller adds the
file's name and the remedy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

# The largest JSON file of a full-size model, tokenizer.json, has 3.6 MB. Parsed, the worst file of
# this size takes 0.3 GB.
MAX_JSON_BYTES = 2**23

# In a bucket an epath.Path, which has the methods of pathlib's.
AnyPath: TypeAlias = Path | epath.Path


def as_path(name: str) -> AnyPath:
    """Returns the path of a local file or folder, or of one in a bucket (gs://..., s3://...)."""
    return epath.Path(name) if "://" in name else Path(name)


def absolute(path: AnyPath) -> AnyPath:
    """Returns the path from the root of the local file system, or of its bucket."""
    return path.absolute() if isinstance(path, Path) else path


def read_json(path: AnyPath) -> Any:
    """Parses a JSON file in UTF-8.

    Raises:
      FileNotFoundError: there is no such file.
      OSError, ValueError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_text(path: AnyPath, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Reads a file in UTF-8. Raises as `read_json` does."""
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes / 2**20:g} MB")
    return data.decode("utf-8")


def require_regular(path: AnyPath) -> None:
    """Raises a ValueError where the path is no file: reading a pipe or a device may never end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")


def atomic_write(path: AnyPath, data: bytes) -> None:
    """Writes a file whole or not at all, so that no reader sees half of it."""
    if not isinstance(path, Path):  # An object in a bucket appears only when it is complete.
        path.write_bytes(data)
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # On a full disk the part takes the last of the room.
            part.unlink()
        raise


def copy_folder(source: Path, target: AnyPath) -> None:
    """Copies every file below a local folder to another one, local or in a bucket."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as read, copy.open("wb") as written:
                shutil.copyfileobj(read, written)
