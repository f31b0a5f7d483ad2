"""A text file of prompts: one per line; blank lines and lines that begin with # are skipped.

It may be a pipe: `... | python -m dreamfusion_jax.main --prompts_file=-`.
"""

from __future__ import annotations

import sys

from dreamfusion_jax.config.flags import check_text
from dreamfusion_jax.config.folder_names import normalized
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import as_path, decode, read_text


def read_prompts(name: str) -> list[str]:
    """Reads the prompts of a local or bucket file, or of stdin ("-"), in order, each once.

    Raises:
      UserError: the file cannot be read or has no prompt.
    """
    check_text("--prompts_file", name)
    path = as_path(name, "prompts_file")
    try:
        text = decode(sys.stdin.buffer) if name == "-" else read_text(path, only_regular=False)
        text = text.removeprefix("\ufeff")  # some editors' byte order mark
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts_file={name} cannot be read ({error}).") from error
    lines = (line.strip() for line in text.splitlines())
    prompts: dict[str, str] = {}
    for prompt in (line for line in lines if line and not line.startswith("#")):
        prompts.setdefault(normalized(prompt), prompt)
    if not prompts:
        raise UserError(f"--prompts_file={name} holds no prompt.")
    return list(prompts.values())
