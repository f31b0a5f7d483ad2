"""From the settings of a run to the shortest command that reproduces it."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from typing import Any

from dreamfusion_jax.config.flags import PRESETS, SECTIONS, Config, config_from_settings
from dreamfusion_jax.config.folder_names import slug

# Settings whose values differ between the processes of a job.
PER_PROCESS = ("coordinator", "processes", "process_index")


def arguments(config: Config) -> list[str]:
    """Returns the flags of `python -m dreamfusion_jax.main` that give `config`, as few as possible.

    Parsing them gives `config` again, except for the settings in `PER_PROCESS`.
    """
    shortest = min((_extra_flags(config, preset) for preset in PRESETS), key=len)
    return [f"--prompt={config.train.prompt}", *shortest]


def shell_command(config: Config) -> str:
    """Returns the whole command, quoted for a shell."""
    return shlex.join(["python", "-m", "dreamfusion_jax.main", *arguments(config)])


def diff(config: Config, base: Config) -> dict[str, Any]:
    """Returns the settings that differ from `base`, by name, except for the prompt."""
    return {
        setting.name: getattr(getattr(config, section), setting.name)
        for section in SECTIONS
        for setting in dataclasses.fields(SECTIONS[section])
        if setting.name != "prompt"
        and getattr(getattr(config, section), setting.name)
        != getattr(getattr(base, section), setting.name)
    }


def format_flag_value(value: Any) -> str:
    """Formats a setting's value for its flag."""
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _extra_flags(config: Config, preset: str) -> list[str]:
    """Returns the flags that are needed beside the prompt and `--preset`."""
    values = diff(config, _preset(preset))
    if values.get("workdir") == f"workdir/{slug(config.train.prompt)}":
        del values["workdir"]
    if config.scene.field == "image":  # which sets it by itself
        values.pop("view_words", None)
    start = [] if preset == "toybox" else [f"--preset={preset}"]
    flags = [f"--{n}={format_flag_value(v)}" for n, v in values.items() if n not in PER_PROCESS]
    return start + flags


@functools.cache
def _preset(name: str) -> Config:
    return config_from_settings(name, {"prompt": "anything"})
