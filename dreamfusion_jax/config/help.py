"""What `--help` prints: every flag of a command with its default and meaning, by section."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence

from absl import flags

from dreamfusion_jax.config.flags import SECTIONS, define_flags

REQUESTS = ("-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull")
TITLES: Mapping[str, str] = {
    "scene": "Scene",
    "camera": "Training cameras",
    "prior": "Prior",
    "distillation": "Distillation",
    "view_prompts": "View words",
    "train": "Training",
    "optimizer": "Optimizer",
    "run": "Run and outputs",
}
_PACKAGE = __name__.split(".")[0]
_WIDTH = 100
_INTRODUCTION = (
    "Flags, each with its default. A range is two numbers, or one for both ends. `(paper: ...)` is"
    " DreamFusion's own value."
)
_ABSL = "absl's own flags: --flagfile=FILE reads flags from a file; also --undefok, --pdb, ..."


def is_requested(arguments: Sequence[str]) -> bool:
    """Returns whether one of the arguments, before any `--`, asks for help."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(argument in REQUESTS for argument in before)


def help_text(description: str, values: flags.FlagValues) -> str:
    """Formats a command's description and flags; absl's own flags are one line at the end."""
    by_module = values.flags_by_module_dict()
    collected = {flag.name for flag in by_module.get(define_flags.__module__, ())}
    sections = {
        TITLES[section]: [s.name for s in dataclasses.fields(cls) if s.name in collected]
        for section, cls in SECTIONS.items()
    }
    listed = {name for names in sections.values() for name in names} | _former_names()
    own = [name for name in _names_defined_here(values) if name not in listed]
    parts = [inspect.cleandoc(description), _wrap(_INTRODUCTION, "")]
    for title, names in {"This command": own, **sections}.items():
        if names:
            parts.append("\n".join([f"{title}:", *(_entry(values[name]) for name in names)]))
    return "\n\n".join([*parts, _ABSL])


def print_text(text: str) -> None:
    """Prints to stdout; a reader that leaves early, as `head` does, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again at exit, where the same error would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _names_defined_here(values: flags.FlagValues) -> list[str]:
    """Returns the names of the flags that this package defines, in their order."""
    return [
        flag.name
        for module, defined in values.flags_by_module_dict().items()
        if module.split(".")[0] == _PACKAGE or module == sys.argv[0]
        for flag in defined
    ]


def _former_names() -> set[str]:
    return {
        setting.metadata["former_name"]
        for section in SECTIONS.values()
        for setting in dataclasses.fields(section)
    }


def _entry(flag: flags.Flag) -> str:
    # absl quotes a default as Python does, and puts the choices before the help.
    default = shlex.quote(ast.literal_eval(flag.default_as_str) if flag.default_as_str else "")
    choices = "|".join(getattr(flag.parser, "enum_values", ()))
    help = str(flag.help).removeprefix(f"<{choices}>: ")
    return _wrap(f"--{flag.name}={default}{choices and f' ({choices})'}: {help}", "  ")


def _wrap(text: str, indent: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "    " if indent else "",
        break_on_hyphens=False,
        break_long_words=False,
    )
