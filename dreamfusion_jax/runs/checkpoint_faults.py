"""Tells a damaged checkpoint from one that cannot be read, or not with these settings.

Only bytes that could be read prove damage. A disk or a network that fails, missing permissions and
settings of another run prove nothing; what fails by them is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dreamfusion_jax.runtime.errors import RunError
from dreamfusion_jax.runtime.files import AnyPath

# What Orbax and TensorStore raise where bytes are missing or mean nothing.
_OF_BYTES = (ValueError, LookupError, TypeError, AttributeError)
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# TensorStore raises a ValueError whatever fails; its message has the status or the errno.
_OF_THE_MACHINE = re.compile(
    r"\bE(?:ACCES|PERM|ROFS|IO|STALE|MFILE|NFILE|NOMEM|AGAIN|INTR|TIMEDOUT|BUSY)\b"
    "|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED"
    "|CANCELLED|Permission denied|Input/output error|Stale file handle|Too many open files"
    "|Cannot allocate memory|Read-only file system|timed out|Connection ",
    re.IGNORECASE,
)
_PIECE_BYTES = 2**20


class DamagedError(Exception):
    """A checkpoint whose bytes are not those that were written. The message is the reason."""


class UnreadableError(RunError):
    """A checkpoint that could not be read, though it may be intact."""


def fault(folder: AnyPath, error: Exception, mismatch: str) -> DamagedError | UnreadableError:
    """Returns what an error means that was raised as a checkpoint was read.

    Args:
      folder: of the checkpoint.
      mismatch: how its arrays differ from those of the settings; "" where they do not, or where
        nobody can tell.
    """
    if mismatch:
        return UnreadableError(
            f"{folder} was written with other settings or by another version ({mismatch}); it is"
            " left as it is: use those, or choose another --workdir."
        )
    if not _is_of_bytes(error):
        return unreadable(folder, first_line(error))
    try:
        _read_through(folder)
    except OSError as failure:
        return unreadable(folder, str(failure))
    return DamagedError(first_line(error))


def unreadable(folder: AnyPath, reason: str) -> UnreadableError:
    """Builds the error for a checkpoint of which nothing is known but that reading it failed."""
    return UnreadableError(
        f"{folder} cannot be read ({reason}); it may be intact and is left as it is: check the disk"
        " and the permissions, then run the same command."
    )


def array_mismatch(stored: Any, like: Any) -> str:
    """Describes the first array whose stored type or shape is not that of `like`, or returns "".

    Args:
      stored: tree of what has `dtype` and `shape`.
    """
    there, wanted = _kinds(stored), _kinds(like)
    for name in sorted(there.keys() & wanted.keys()):
        if there[name] != wanted[name]:
            return f"{name} is {there[name]}, not {wanted[name]}"
    return ""


def name_mismatch(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Describes the first array that only one of the two has, or returns ""."""
    for name in sorted(stored.keys() ^ wanted.keys()):
        return f"it has no {name}" if name in wanted else f"it has {name}"
    return ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _kinds(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{np.dtype(leaf.dtype)} {list(leaf.shape)}"
        )
        for path, leaf in leaves
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    }


def _is_of_bytes(error: BaseException) -> bool:
    """Returns whether an error and its causes may come from the bytes that were read."""
    return all(
        isinstance(e, (*_OF_BYTES, *_MISSING)) and not _OF_THE_MACHINE.search(str(e))
        for e in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _read_through(folder: AnyPath) -> None:
    """Reads every byte; raises an OSError where the machine refuses some."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(_PIECE_BYTES):
                    pass
