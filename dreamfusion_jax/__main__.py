"""Lists the commands, or runs one: `dreamfusion-jax COMMAND`, or `python -m dreamfusion_jax`."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from dreamfusion_jax.runtime import process

COMMANDS = ("main", "sample", "render", "export", "view", "studio", "page", "evaluate", "ablation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names with the rest as flags; returns 0, or 2."""
    if arguments is None:  # the console script
        process.begin()
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help", "help"):
        print(overview())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        print(f"Error: There is no command {name!r:.80}; {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"dreamfusion_jax.{name}", *rest[:-1]]
    runpy.run_module(f"dreamfusion_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


def overview() -> str:
    """Returns each command with the first line of its documentation."""
    lines = ["Text to 3D by score distillation. Commands, each with --help:", ""]
    lines += [f"  dreamfusion-jax {name:<10} {summary(name)}" for name in COMMANDS]
    return "\n".join(lines)


def summary(name: str) -> str:
    """Returns the first line of a command's docstring, without importing it."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n", 1)[0]


if __name__ == "__main__":
    sys.exit(main())
