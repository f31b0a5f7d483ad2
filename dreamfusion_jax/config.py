"""A whole run's configuration: one command-line flag a setting, checks, presets, config.json."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from dreamfusion_jax.errors import UserError
from dreamfusion_jax.settings import (
    CameraConfig,
    OptimizerConfig,
    PriorConfig,
    Range,
    RunConfig,
    SceneConfig,
    TrainConfig,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    scene: SceneConfig = SceneConfig()
    camera: CameraConfig = CameraConfig()
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()


SECTIONS: Mapping[str, type] = types.MappingProxyType(
    {
        "scene": SceneConfig,
        "camera": CameraConfig,
        "prior": PriorConfig,
        "train": TrainConfig,
        "optimizer": OptimizerConfig,
        "run": RunConfig,
    }
)


_PRESET_FOLDER = Path(__file__).parent / "presets"
PRESETS: Mapping[str, Path] = types.MappingProxyType(
    {name: _PRESET_FOLDER / f"{name}.cfg" for name in ("toybox", "paper", "sd")}
)


class _RangeParser(flags.ArgumentParser):
    """Reads "2.3,3.2" as the two ends of a range, and one number as both."""

    syntactic_help = "one number, or two with a comma between them"

    def parse(self, argument: Any) -> Range:
        if isinstance(argument, str):
            ends = [float(end) for end in argument.strip("()").split(",")]
        else:
            ends = [float(end) for end in argument]
        if len(ends) not in (1, 2):
            raise ValueError(f"expected {self.syntactic_help}")
        return ends[0], ends[-1]

    def flag_type(self) -> str:
        return "range"


class _RangeSerializer(flags.ArgumentSerializer):
    def serialize(self, value: Range) -> str:
        return f"{value[0]},{value[1]}"


def define_flags(
    names: Collection[str] | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines one flag a setting, under its own name: those in `names`, or all, and `--preset`."""
    if names is None:
        help = "settings to start from: toybox (the defaults), the paper's, or Stable Diffusion's"
        flags.DEFINE_enum("preset", "toybox", list(PRESETS), help, flag_values=flag_values)
    for section in SECTIONS.values():
        for setting in dataclasses.fields(section):
            if names is None or setting.name in names:
                _define_flag(setting, flag_values)


def _define_flag(setting: dataclasses.Field, flag_values: flags.FlagValues) -> None:
    name, help = setting.name, setting.metadata["help"]
    default: Any = setting.default
    if setting.metadata["choices"] is not None:
        choices = setting.metadata["choices"]
        flags.DEFINE_enum(name, default, choices, help, flag_values=flag_values)
    elif isinstance(default, tuple):
        flags.DEFINE(
            _RangeParser(), name, default, help, flag_values, serializer=_RangeSerializer()
        )
    else:
        define: dict[type, Any] = {
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
            bool: flags.DEFINE_bool,
        }
        define[type(default)](name, default, help, flag_values=flag_values)


def parse_flags(arguments: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses `arguments`, the program's name first; returns those that are no flags.

    A preset is a flagfile that comes before all other arguments, wherever it was named, so that
    they overrule it.
    """
    rest = flag_values(arguments)
    if "preset" not in flag_values or not flag_values["preset"].present:
        return rest
    flagfile = f"--flagfile={PRESETS[str(flag_values['preset'].value)]}"
    for name in flag_values:
        flag_values[name].unparse()
    return flag_values([arguments[0], flagfile, *arguments[1:]])


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
    """The checked configuration that the parsed flags describe."""
    values = {
        name: {setting.name: flag_values[setting.name].value for setting in dataclasses.fields(cls)}
        for name, cls in SECTIONS.items()
    }
    return validate(from_dict(values))


def override_run(
    stored: Config, names: Collection[str], flag_values: flags.FlagValues = flags.FLAGS
) -> Config:
    """The stored settings, their `run` section with the flags in `names` that the user gave."""
    given: dict[str, Any] = {
        name: flag_values[name].value for name in names if flag_values[name].present
    }
    run = dataclasses.replace(stored.run, **given)
    _check_section(run)
    return dataclasses.replace(stored, run=run)


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The inverse of `to_dict`; settings that are not there keep their defaults."""
    sections = {}
    for name, section in SECTIONS.items():
        given = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.get(name, {}).items()
        }
        sections[name] = section(**given)
    return Config(**sections)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Plain nested dictionaries, as config.json holds them."""
    return dataclasses.asdict(config)


def read_config(path: Path) -> Config:
    """The configuration stored in a work folder's config.json."""
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"There is no {path}; --workdir must name the folder of a run.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as a configuration ({error}); choose another --workdir."
        ) from error


def validate(config: Config) -> Config:
    """Returns `config` with its blanks filled in, or says in one sentence what is wrong with it."""
    for name in SECTIONS:
        _check_section(getattr(config, name))
    if not config.train.prompt.strip():
        raise UserError('--prompt is empty; say what to make, for example --prompt="a red chair".')
    if is_flat(config):  # It looks the same from everywhere, so that no view is put into words.
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, view_words="none")
        )
    for name in ("t_max_start", "t_max_end"):
        if getattr(config.prior, name) <= config.prior.t_min:
            raise UserError(f"--{name} must be greater than --t_min ({config.prior.t_min}).")
    if config.scene.max_degree <= config.scene.min_degree:
        raise UserError(f"--max_degree must exceed --min_degree ({config.scene.min_degree}).")
    if config.scene.hash_finest < config.scene.hash_coarsest:
        raise UserError(f"--hash_finest must reach --hash_coarsest ({config.scene.hash_coarsest}).")
    for name in ("negative_views", "perp_neg"):
        if getattr(config.train, name) and config.train.view_words != "paper":
            raise UserError(f"--{name} needs --view_words=paper.")
    if config.run.workdir:
        return config
    workdir = str(Path("workdir") / slug(config.train.prompt))
    return dataclasses.replace(config, run=dataclasses.replace(config.run, workdir=workdir))


def is_flat(config: Config) -> bool:
    """Whether the run makes a flat picture instead of a scene."""
    return config.scene.field == "image"


def differing_flags(stored: Config, asked: Config) -> list[str]:
    """The flags whose values make `asked` another run than `stored`, not its continuation.

    The `run` section may change freely, and the number of steps may grow.
    """
    names = []
    for section in (name for name in SECTIONS if name != "run"):
        old, new = getattr(stored, section), getattr(asked, section)
        for setting in dataclasses.fields(old):
            before, after = getattr(old, setting.name), getattr(new, setting.name)
            grown = setting.name == "steps" and after > before
            if before != after and not grown:
                names.append(setting.name)
    return names


def _check_section(section: Any) -> None:
    for setting in dataclasses.fields(section):
        _check(setting, getattr(section, setting.name))
    if isinstance(section, RunConfig) and section.turntable_size % 2:
        raise UserError("--turntable_size must be even, as the MP4 format wants it.")


def _check(setting: dataclasses.Field, value: Any) -> None:
    """Raises a UserError unless `value` is of the field's type and within its bounds."""
    flag, metadata = f"--{setting.name}", setting.metadata
    if metadata["choices"] is not None and value not in metadata["choices"]:
        raise UserError(f"{flag} must be one of {', '.join(metadata['choices'])}, not {value}.")
    if isinstance(value, str):
        return
    for number in value if isinstance(value, tuple) else (value,):
        if not math.isfinite(number):
            raise UserError(f"{flag} must be a finite number, not {number}.")
        for bound, words, wrong in (
            (metadata["minimum"], "at least", lambda a, b: a < b),
            (metadata["maximum"], "at most", lambda a, b: a > b),
        ):
            if bound is not None and wrong(number, bound):
                raise UserError(f"{flag} must be {words} {bound:g}, not {number:g}.")
    if isinstance(value, tuple) and value[0] > value[1]:
        raise UserError(f"{flag} must go from the lesser to the greater, not {value}.")


def slug(prompt: str) -> str:
    """The prompt as a folder's name: lower-case words joined by hyphens."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    return "-".join(words)[:80] or "untitled"
