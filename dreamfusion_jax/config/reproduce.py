"""The command that makes a run again, from its settings alone."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from typing import Any

from dreamfusion_jax.config.flags import PRESETS, SECTIONS, Config, config_from_settings, slug

# What each of several processes is given its own values of.
OF_A_PROCESS = ("coordinator", "processes", "process_index")


def arguments(config: Config) -> list[str]:
    """The flags of `python -m dreamfusion_jax.main`, as few as a preset allows.

    Parsing them gives `config` again, but for the settings in `OF_A_PROCESS`.
    """
    shortest = min((_extra_flags(config, preset) for preset in PRESETS), key=len)
    return [f"--prompt={config.train.prompt}", *shortest]


def shell_command(config: Config) -> str:
    """The whole command, as a shell reads it."""
    return shlex.join(["python", "-m", "dreamfusion_jax.main", *arguments(config)])


def diff(config: Config, base: Config) -> dict[str, Any]:
    """The settings that are not as in `base`, by name, but for the prompt."""
    return {
        setting.name: getattr(getattr(config, section), setting.name)
        for section in SECTIONS
        for setting in dataclasses.fields(SECTIONS[section])
        if setting.name != "prompt"
        and getattr(getattr(config, section), setting.name)
        != getattr(getattr(base, section), setting.name)
    }


def format_flag_value(value: Any) -> str:
    """A setting's value as its flag wants it."""
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _extra_flags(config: Config, preset: str) -> list[str]:
    """What is to be said beside the prompt where one starts from a preset."""
    values = diff(config, _preset(preset))
    if values.get("workdir") == f"workdir/{slug(config.train.prompt)}":
        del values["workdir"]
    if config.scene.field == "image":  # for which it is set anyway
        values.pop("view_words", None)
    start = [] if preset == "toybox" else [f"--preset={preset}"]
    said = [f"--{n}={format_flag_value(v)}" for n, v in values.items() if n not in OF_A_PROCESS]
    return start + said


@functools.cache
def _preset(name: str) -> Config:
    return config_from_settings(name, {"prompt": "anything"})
