"""Folders here or in a bucket, text files that anybody may have written, files written whole.

What is wrong with a file is raised as a ValueError or an OSError, whose message is a phrase that
the caller completes with the file's name and the mend.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

# A full-size model's tokenizer.json, the largest there is, has 3.6 MB; parsed, the worst file of
# this size takes 0.3 GB.
MAX_JSON_BYTES = 2**23

# Of a bucket an epath.Path, which knows the same words as pathlib's.
AnyPath: TypeAlias = Path | epath.Path


def as_path(name: str) -> AnyPath:
    """A file or folder here, or one in a bucket (gs://..., s3://...)."""
    return epath.Path(name) if "://" in name else Path(name)


def absolute(path: AnyPath) -> AnyPath:
    """From the root of this machine's file system, or the bucket it is in."""
    return path.absolute() if isinstance(path, Path) else path


def read_json(path: AnyPath) -> Any:
    """Parses a JSON file in UTF-8.

    Raises:
      FileNotFoundError: there is none.
      OSError, ValueError: it cannot be read, or holds something else.
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
    """Refuses what is there but no file: a pipe would be waited for, a device has no end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")


def atomic_write(path: AnyPath, data: bytes) -> None:
    """Writes a file whole or not at all: whoever reads it never sees half of one."""
    if not isinstance(path, Path):  # An object in a bucket appears when it is whole.
        path.write_bytes(data)
        return
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def copy_folder(source: Path, target: AnyPath) -> None:
    """Copies every file below a folder of this machine to one here or in a bucket."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as read, copy.open("wb") as written:
                shutil.copyfileobj(read, written)
