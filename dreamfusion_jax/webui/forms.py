"""From the declarations of the settings to the fields of a form, and from its values to a run.

Nothing here knows the web: a `Field` says what to ask for, and `make_config` reads the answers as
the flags of the command, so that its errors are the command's own sentences.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.config.flags import SECTIONS, Config, config_from_settings
from dreamfusion_jax.config.folder_names import hashed_slug, slug
from dreamfusion_jax.config.help import TITLES
from dreamfusion_jax.config.reproduce import format_flag_value
from dreamfusion_jax.diffusion.loading.pipeline import check_prior
from dreamfusion_jax.runs.open_prior import find_prior
from dreamfusion_jax.runtime.errors import PriorError, UserError

PROMPT = "prompt"
# Asked for above all others.
MAIN = ("prior", "steps", "seed", "guidance_scale")
# Set by the studio itself, or of jobs of several processes, or of services elsewhere.
_HIDDEN = (
    *(PROMPT, "workdir", "distributed", "coordinator", "processes", "process_index"),
    *("peer_timeout", "wandb", "compilation_cache"),
)
_MAX_PROMPT = 2000


class Field(NamedTuple):
    """One setting as a form asks for it.

    Attributes:
      kind: bool, int, float, str, or tuple for several numbers, which are written as text.
      choices: the only values of a text; empty: any.
    """

    name: str
    help: str
    kind: type
    choices: tuple[str, ...]


@functools.cache
def sections() -> dict[str, list[Field]]:
    """Returns the fields of all settings but the hidden ones and those of `MAIN`, by title."""
    return {
        TITLES[section]: [
            _field(setting)
            for setting in dataclasses.fields(options)
            if setting.name not in (*_HIDDEN, *MAIN)
        ]
        for section, options in SECTIONS.items()
    }


@functools.cache
def main_fields() -> list[Field]:
    """Returns the fields of `MAIN`, in that order."""
    settings = {s.name: s for options in SECTIONS.values() for s in dataclasses.fields(options)}
    return [_field(settings[name]) for name in MAIN]


def all_fields() -> list[Field]:
    """Returns all fields in the order in which `preset_values` and `make_config` take them."""
    return [*main_fields(), *(field for fields in sections().values() for field in fields)]


def preset_values(preset: str) -> list[Any]:
    """Returns the values that a preset gives to `all_fields`."""
    return config_values(config_from_settings(preset, {"prompt": "anything"}))


def config_values(config: Config) -> list[Any]:
    """Returns a configuration's values of `all_fields`; ranges as text."""
    values = {
        setting.name: getattr(getattr(config, section), setting.name)
        for section, options in SECTIONS.items()
        for setting in dataclasses.fields(options)
    }
    return [
        format_flag_value(values[field.name]) if field.kind is tuple else values[field.name]
        for field in all_fields()
    ]


def make_config(
    root: Path, taken: Sequence[str], prompt: str, preset: str, values: Sequence[Any]
) -> Config:
    """Returns the checked configuration of a new run in a folder of its own below `root`.

    Args:
      taken: names of folders that are spoken for, though they may not exist yet.
      values: of `all_fields`, in their order.

    Raises:
      UserError: the prompt or a value is wrong, or the prior's files are.
    """
    if len(prompt) > _MAX_PROMPT:
        raise UserError(f"--prompt has {len(prompt):,} characters; {_MAX_PROMPT:,} are the most.")
    answers = zip(all_fields(), values, strict=True)
    given = [
        f"--{field.name}={_text(field, value)}" for field, value in answers if value is not None
    ]
    config = _parse([f"--preset={preset}", f"--{PROMPT}={prompt}", f"--workdir={root}", *given])
    if config.prior.prior.startswith((".", "/", "~")) or Path(config.prior.prior).is_dir():
        # A hub id is looked up by the run, which shows the download.
        check_prior(find_prior(config.prior), config.prior.variant)
    return in_new_folder(config, root, taken)


def concerned_field(error: UserError) -> str:
    """Returns the name of the field that an error is about; empty where no field is."""
    if isinstance(error, PriorError):
        return "prior"
    names = {PROMPT, *(field.name for field in all_fields())}
    return next((n for n in re.findall(r"--([a-z0-9_]+)", str(error)) if n in names), "")


def in_new_folder(config: Config, root: Path, taken: Sequence[str]) -> Config:
    """Returns `config` for a folder below `root` that no run has."""
    name = free_name(root, config.train.prompt, taken)
    return dataclasses.replace(
        config, run=dataclasses.replace(config.run, workdir=str(root / name))
    )


def free_name(root: Path, prompt: str, taken: Sequence[str]) -> str:
    """Returns a folder's name from the prompt's words, numbered where it is taken."""
    base = slug(prompt)
    names = (base, *(f"{hashed_slug(prompt)}-{number}" for number in range(2, 10_000)))
    return next(n for n in names if n not in taken and not (root / n).exists())


def _field(setting: dataclasses.Field) -> Field:
    help, choices = setting.metadata["help"], tuple(setting.metadata["choices"] or ())
    return Field(setting.name, help, type(setting.default), choices)


def _text(field: Field, value: Any) -> str:
    """Writes what a form gives as the value of a flag."""
    if field.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return format_flag_value(value.strip() if isinstance(value, str) else value)


def _parse(arguments: Sequence[str]) -> Config:
    """Parses flags as the command does. Raises a UserError with its sentence."""
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    try:
        configs.parse_flags(["", *arguments], values)
    except flags.Error as error:
        raise UserError(error) from None
    return configs.config_from_flags(values)
