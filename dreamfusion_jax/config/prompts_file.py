"""A text file of prompts: one per line; blank lines and lines that begin with # are skipped."""

from __future__ import annotations

from dreamfusion_jax.config.flags import check_text
from dreamfusion_jax.config.folder_names import normalized
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import as_path, read_text


def read_prompts(name: str) -> list[str]:
    """Reads the prompts of a local or bucket file in order, each once.

    Raises:
      UserError: the file cannot be read or has no prompt.
    """
    check_text("--prompts_file", name)
    try:
        text = read_text(as_path(name)).removeprefix("\ufeff")  # some editors' byte order mark
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts_file={name} cannot be read ({error}).") from error
    lines = (line.strip() for line in text.splitlines())
    prompts: dict[str, str] = {}
    for prompt in (line for line in lines if line and not line.startswith("#")):
        prompts.setdefault(normalized(prompt), prompt)
    if not prompts:
        raise UserError(f"--prompts_file={name} holds no prompt.")
    return list(prompts.values())
