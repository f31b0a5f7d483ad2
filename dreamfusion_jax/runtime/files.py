"""Paths on a local disk or in a bucket, text files of unknown origin, atomic writes.

A faulty file raises a ValueError or an OSError whose message is a phrase; the caller adds the
file's name and the remedy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

from dreamfusion_jax.runtime.errors import UserError

# The largest JSON file of a full-size model, tokenizer.json, has 3.6 MB. Parsed, the worst file of
# this size takes 0.3 GB.
MAX_JSON_BYTES = 2**23

# In a bucket an epath.Path, which has the methods of pathlib's.
AnyPath: TypeAlias = Path | epath.Path


_BUCKETS = ("gs", "s3", "az", "hf")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# pathlib.Path("gs://bucket") has lost a slash.
_LOST_SLASH = re.compile(rf"({'|'.join(_BUCKETS)}):/(?!/)")


def as_path(name: str, flag: str = "") -> AnyPath:
    """Turns what a user writes into a path: local, from a home folder (~), or in a bucket.

    Args:
      flag: the flag whose value it is, for messages.

    Raises:
      UserError: there is no such home folder here, or no such kind of bucket.
    """
    given = f"--{flag}={name}" if flag else name
    if scheme := _SCHEME.match(name):
        if scheme[1] not in _BUCKETS:
            known = ", ".join(f"{bucket}://" for bucket in _BUCKETS)
            raise UserError(
                f"{given} is in no place that is known here: give a local path without"
                f" {scheme[0]}, or a bucket ({known})."
            )
        return epath.Path(name)
    if lost := _LOST_SLASH.match(name):
        raise UserError(f"{given} lacks a slash: a bucket is text that begins with {lost[1]}://.")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(
            f"{given} begins with ~, but there is no such home folder here: set HOME, or give the"
            " whole path."
        ) from None


def local_path(name: str, flag: str = "") -> Path:
    """Returns `as_path(name, flag)`. Raises a UserError where it is not on a local disk, too."""
    path = as_path(name, flag)
    if not isinstance(path, Path):
        given = f"--{flag}={name}" if flag else name
        raise UserError(f"{given} is in a bucket; name a place on a local disk.")
    return path


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


def read_text(path: AnyPath, only_regular: bool = True) -> str:
    """Reads a file in UTF-8. Raises as `read_json` does.

    Args:
      only_regular: whether a pipe or a device is refused.
    """
    if only_regular:
        require_regular(path)
    with path.open("rb") as file:
        return decode(file)


def decode(file: Any) -> str:
    """Reads the rest of an open file in UTF-8. Raises as `read_json` does."""
    data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES / 2**20:g} MB")
    return data.decode("utf-8")


def require_regular(path: AnyPath) -> None:
    """Raises a ValueError where the path is no file: reading a pipe or a device may never end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")


@contextlib.contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Names the file in an OSError that does not: of a write to a file that was open already."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def atomic_write(path: AnyPath, data: bytes) -> None:
    """Writes a file whole or not at all, so that no reader sees half of it."""
    if not isinstance(path, Path):  # An object in a bucket appears only when it is complete.
        path.write_bytes(data)
        return
    part = path.with_name(path.name + ".part")
    try:
        with naming(path), part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # On a full disk the part takes the last of the room.
            part.unlink()
        raise


def move(source: AnyPath, target: AnyPath) -> None:
    """Moves a file or folder, also to another disk."""
    if isinstance(source, Path):
        shutil.move(source, os.fspath(target))
    else:
        source.rename(target)


def copy_folder(source: Path, target: AnyPath) -> None:
    """Copies every file below a local folder to another one, local or in a bucket."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as read, copy.open("wb") as written:
                shutil.copyfileobj(read, written)
