"""Reading text files that anybody may have written, and writing files whole.

What is wrong with a file is raised as a ValueError or an OSError, whose message is a phrase that
the caller completes with the file's name and the mend.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# A full-size model's tokenizer.json, the largest there is, has 3.6 MB; parsed, the worst file of
# this size takes 0.3 GB.
MAX_JSON_BYTES = 2**23


def read_json(path: Path) -> Any:
    """Parses a JSON file in UTF-8.

    Raises:
      FileNotFoundError: there is none.
      OSError, ValueError: it cannot be read, or holds something else.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Reads a file in UTF-8. Raises as `read_json` does."""
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes / 2**20:g} MB")
    return data.decode("utf-8")


def require_regular(path: Path) -> None:
    """Refuses what is there but no file: a pipe would be waited for, a device has no end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: whoever reads it never sees half of one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
