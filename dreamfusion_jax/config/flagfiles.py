"""Flagfiles as people write them: quotes around a value, comments after it, a byte order mark.

  --prompt="a red chair"
  --steps=300   # enough for a first look

A comment begins with `#` between spaces, so that "a sign #1" needs no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dreamfusion_jax.runtime.files import as_path, read_text

_FLAGFILE = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)
# A flag, its value in one kind of quotes, and perhaps a comment.
_QUOTED = re.compile(r"""(--?\w+=)(["'])(.*)\2\s*(?:\s#.*)?""", re.DOTALL)
_COMMENT = re.compile(r"\s+#(?:\s.*)?$")


def expand(arguments: Sequence[str], within: tuple[str, ...] = ()) -> list[str]:
    """Replaces every `--flagfile=FILE`, before any `--`, by the flags in that file.

    Args:
      within: the flagfiles that are being read, which a file among them must not name again.

    Raises:
      ValueError: a file cannot be read; the message names it.
    """
    expanded: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = _FLAGFILE.fullmatch(argument)
        if argument == "--":
            return [*expanded, argument, *rest]
        if not match or (match[1] is None and not rest):
            expanded.append(argument)
            continue
        name = rest.pop(0) if match[1] is None else match[1]
        expanded += _read(name, within)
    return expanded


def _read(name: str, within: tuple[str, ...]) -> list[str]:
    if name in within:
        raise ValueError(f"{name} includes itself")
    try:
        text = read_text(as_path(name)).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    lines = (line.strip() for line in text.splitlines())
    flags = [_flag(line) for line in lines if line and not line.startswith(("#", "//"))]
    return expand(flags, (*within, name))


def _flag(line: str) -> str:
    """Returns a line's flag without the quotes around its value and without a comment."""
    if quoted := _QUOTED.fullmatch(line):
        if quoted[2] not in quoted[3]:
            return quoted[1] + quoted[3]
    return _COMMENT.sub("", line)
