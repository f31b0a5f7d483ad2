"""The configuration of a run: one flag per setting, checks, presets, config.json."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import numbers
import os
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from dreamfusion_jax.config import flagfiles
from dreamfusion_jax.config.combinations import check_combinations
from dreamfusion_jax.config.folder_names import free_folder
from dreamfusion_jax.config.parsers import RangeParser, TupleSerializer, WholeNumbersParser
from dreamfusion_jax.diffusion.priors.options import PriorOptions
from dreamfusion_jax.distillation.options import DistillationOptions, ViewPromptOptions
from dreamfusion_jax.nerf.cameras import CameraRanges
from dreamfusion_jax.nerf.options import SceneOptions
from dreamfusion_jax.runs.options import NO_FOLDERS, RunOptions
from dreamfusion_jax.runtime.errors import ArgumentError, UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path, read_json
from dreamfusion_jax.runtime.settings import WholeNumbers, is_whole_numbers
from dreamfusion_jax.training.options import OptimizerOptions, TrainOptions


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, by section."""

    scene: SceneOptions = SceneOptions()
    camera: CameraRanges = CameraRanges()
    prior: PriorOptions = PriorOptions()
    distillation: DistillationOptions = DistillationOptions()
    view_prompts: ViewPromptOptions = ViewPromptOptions()
    train: TrainOptions = TrainOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    run: RunOptions = RunOptions()


SECTIONS: Mapping[str, type] = types.MappingProxyType(
    {
        "scene": SceneOptions,
        "camera": CameraRanges,
        "prior": PriorOptions,
        "distillation": DistillationOptions,
        "view_prompts": ViewPromptOptions,
        "train": TrainOptions,
        "optimizer": OptimizerOptions,
        "run": RunOptions,
    }
)


# Settings of earlier versions without effect on any scene.
_RETIRED = ("objective_rate",)
_PRESET_FILES = sorted((Path(__file__).parent / "presets").glob("*.cfg"))
# By name; the first is the default.
PRESETS: Mapping[str, Path] = types.MappingProxyType(
    {path.stem: path for path in sorted(_PRESET_FILES, key=lambda path: path.stem != "toybox")}
)


def setting_names() -> list[str]:
    """Returns the names of all settings, which are those of their flags."""
    return [
        setting.name for section in SECTIONS.values() for setting in dataclasses.fields(section)
    ]


def define_flags(
    names: Collection[str] | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines one flag per setting: for those in `names`, or for all and `--preset`."""
    if names is None:
        help = (
            "settings to start from: toybox (the defaults), the paper's, Stable Diffusion's (sd),"
            " DeepFloyd IF's, MVDream's, or those of a second stage with --init_from or"
            " --init_mesh (refine)"
        )
        flags.DEFINE_enum("preset", "toybox", list(PRESETS), help, flag_values=flag_values)
    for section in SECTIONS.values():
        for setting in dataclasses.fields(section):
            if names is None or setting.name in names:
                _define_flag(setting, flag_values)
                if former := setting.metadata["former_name"]:
                    flags.DEFINE_alias(former, setting.name, flag_values=flag_values)


def _define_flag(setting: dataclasses.Field, flag_values: flags.FlagValues) -> None:
    name, help = setting.name, setting.metadata["help"]
    default: Any = setting.default
    if setting.metadata["choices"] is not None:
        choices = setting.metadata["choices"]
        flags.DEFINE_enum(name, default, choices, help, flag_values=flag_values)
    elif isinstance(default, tuple):
        parser = WholeNumbersParser() if is_whole_numbers(setting) else RangeParser()
        flags.DEFINE(parser, name, default, help, flag_values, serializer=TupleSerializer())
    else:
        define: dict[type, Any] = {
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
            bool: flags.DEFINE_bool,
        }
        define[type(default)](name, default, help, flag_values=flag_values)


def parse_flags(arguments: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses `arguments`, the program's name first; returns those that are not flags.

    A preset is a flagfile that is read before all other arguments, which therefore override it.

    Raises:
      ValueError: a flagfile cannot be read.
    """
    arguments = flagfiles.expand(arguments)
    rest = flag_values(arguments)
    if "preset" not in flag_values or not flag_values["preset"].present:
        return rest
    flagfile = f"--flagfile={PRESETS[str(flag_values['preset'].value)]}"
    for name in flag_values:
        flag_values[name].unparse()
    return flag_values([arguments[0], flagfile, *arguments[1:]])


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS, **settings: Any) -> Config:
    """Returns the checked configuration of the parsed flags, overridden by `settings`."""
    values = {
        name: {
            setting.name: settings.get(setting.name, flag_values[setting.name].value)
            for setting in dataclasses.fields(cls)
        }
        for name, cls in SECTIONS.items()
    }
    config = validate(from_dict(values))
    return dataclasses.replace(config, run=_with_paths(config.run))


def _with_paths(run: RunOptions) -> RunOptions:
    """Returns the options with the folders that were meant where a name begins with ~."""
    workdir, cache = str(as_path(run.workdir, "workdir")), run.compilation_cache
    if cache not in NO_FOLDERS:
        cache = str(as_path(cache, "compilation_cache"))
    return dataclasses.replace(run, workdir=workdir, compilation_cache=cache)


def config_from_settings(preset: str, settings: Mapping[str, Any]) -> Config:
    """Returns the checked configuration of a preset, overridden by settings named as their flags.

    A range may be given as one number, a folder as a path.

    Raises:
      UserError: there is no such preset or setting, or a value is wrong.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}, not {preset!r:.80}.")
    known = {s.name: s for section in SECTIONS.values() for s in dataclasses.fields(section)}
    current = {s.metadata["former_name"]: name for name, s in known.items()}
    settings = {current.get(name, name): value for name, value in settings.items()}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "the class Config lists them all."
            raise UserError(f"There is no setting {name}; {hint}")
    values = flags.FlagValues()
    define_flags(flag_values=values)
    parse_flags(["", f"--preset={preset}"], values)
    given = {name: _coerce(known[name], value) for name, value in settings.items()}
    return config_from_flags(values, **given)


def _coerce(setting: dataclasses.Field, value: Any) -> Any:
    """Converts a Python value to the type of its flag; other values are left for the checks."""
    kind = type(setting.default)
    if kind is tuple and isinstance(value, numbers.Real):
        value = (value,) if is_whole_numbers(setting) else (value, value)
    if isinstance(value, tuple | list):
        of = int if is_whole_numbers(setting) else float
        return tuple(_plain(end, of) for end in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else _plain(value, kind)


def _plain(value: Any, kind: type) -> Any:
    """Converts numpy's numbers, and integers where a float is meant, to Python's own types."""
    if isinstance(value, bool):
        return value
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        with contextlib.suppress(OverflowError):  # An integer may be larger than any float.
            return float(value)
    return value


def override_run(
    stored: Config, names: Collection[str], flag_values: flags.FlagValues = flags.FLAGS
) -> Config:
    """Returns the stored settings with those flags of the `run` section that the user gave."""
    settings: dict[str, Any] = {
        name: flag_values[name].value for name in names if flag_values[name].present
    }
    return with_run(stored, settings)


def with_run(config: Config, settings: Mapping[str, Any]) -> Config:
    """Replaces settings of the `run` section. Raises a UserError where one is wrong."""
    run = dataclasses.replace(config.run, **settings)
    check_section(run)
    return dataclasses.replace(config, run=run)


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """Inverts `to_dict`, of earlier versions, too; missing settings have their defaults."""
    sections = {}
    for name, section in SECTIONS.items():
        fields = dataclasses.fields(section)
        several = {s.name for s in fields if is_whole_numbers(s)}
        current = {s.metadata["former_name"]: s.name for s in fields}
        stored = values.get(name, {}).items()
        renamed = {current.get(key, key): v for key, v in stored if key not in _RETIRED}
        settings = {
            # Runs of earlier versions have one number there.
            key: (value,) if key in several and isinstance(value, int) else value
            for key, value in renamed.items()
        }
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        sections[name] = section(**settings)
    return Config(**sections)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the nested dictionaries that config.json holds."""
    return dataclasses.asdict(config)


def read_config(path: AnyPath) -> Config:
    """Reads a work folder's config.json. Raises a UserError where that is not possible."""
    try:
        return validate(from_dict(read_json(path)))
    except FileNotFoundError:
        raise UserError(f"There is no {path}; --workdir must name the folder of a run.") from None
    except ImportError as error:  # the client of a bucket
        raise UserError(
            f"{path} needs a package that is not installed ({error}): pip install gcsfs, or s3fs."
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(
            f"{path} cannot be read as a configuration ({error}); choose another --workdir."
        ) from error


def validate(config: Config) -> Config:
    """Returns `config` with derived settings filled in. Raises a UserError where it is wrong."""
    for name in SECTIONS:
        check_section(getattr(config, name))
    if not config.train.prompt.strip():
        raise UserError('--prompt is empty; name an object, for example --prompt="a red chair".')
    if is_flat(config):  # A flat image has no views to describe.
        view_prompts = dataclasses.replace(config.view_prompts, view_words="none")
        config = dataclasses.replace(config, view_prompts=view_prompts)
    check_combinations(config)
    config = dataclasses.replace(config, optimizer=config.optimizer.suited_to(config.scene))
    if config.run.workdir:
        return config
    workdir = str(free_folder(Path("workdir"), config.train.prompt))
    return dataclasses.replace(config, run=dataclasses.replace(config.run, workdir=workdir))


def is_flat(config: Config) -> bool:
    """Returns whether the run makes a flat image instead of a scene."""
    return config.scene.field == "image"


def conflicting_settings(stored: Config, requested: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that make `requested` another run, with the stored and its value.

    The `run` section may change freely, as may the views per device, since the number of devices
    may differ; and the numbers of steps may grow.
    """
    conflicts = {}
    for section in (name for name in SECTIONS if name != "run"):
        old, new = getattr(stored, section), getattr(requested, section)
        for setting in dataclasses.fields(old):
            before, after = getattr(old, setting.name), getattr(new, setting.name)
            grown = setting.name in ("steps", "second_stage_steps") and after > before
            if before != after and not grown and setting.name != "views_per_device":
                conflicts[setting.name] = before, after
    return conflicts


def check_section(section: Any) -> None:
    """Raises a UserError unless every setting is of its type and within its bounds."""
    for setting in dataclasses.fields(section):
        _check(setting, getattr(section, setting.name))
    if isinstance(section, RunOptions) and section.turntable_size % 2:
        raise UserError("--turntable_size must be even, as MP4 requires.")


@contextlib.contextmanager
def name_flags() -> Iterator[None]:
    """Names the argument that a library function refuses by the flag of the same name."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(f"--{error}") from None


def check_text(flag: str, text: str) -> None:
    """Raises a UserError for text that file names, tokenizers or terminals cannot hold."""
    if "\0" in text:
        raise UserError(f"{flag} must not contain the character NUL.")
    try:
        text.encode()
    except UnicodeEncodeError:  # Python's stand-in for bytes that are not UTF-8
        raise UserError(f"{flag} must be text in UTF-8.") from None


def _check(setting: dataclasses.Field, value: Any) -> None:
    flag, metadata = f"--{setting.name}", setting.metadata
    kind: Any = WholeNumbers if is_whole_numbers(setting) else type(setting.default)
    if not _is_of(kind, value):
        raise UserError(f"{flag} must be {_KINDS[kind]}, not {value!r:.80}.")
    if isinstance(value, str):
        check_text(flag, value)
        choices = metadata["choices"]
        if choices is not None and value not in choices:
            raise UserError(f"{flag} must be one of {', '.join(choices)}, not {value}.")
        return
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{flag} must be a finite number, not {number}.")
        for bound, relation, is_outside in (
            (metadata["minimum"], "at least", lambda a, b: a < b),
            (metadata["maximum"], "at most", lambda a, b: a > b),
        ):
            if bound is not None and is_outside(number, bound):
                limit = f"{relation} {_format_number(bound)}"
                raise UserError(f"{flag} must be {limit}, not {_format_number(number)}.")
    if kind is tuple and value[0] > value[1]:
        raise UserError(f"{flag} must go from the lesser to the greater, not {value}.")


_KINDS: Mapping[Any, str] = types.MappingProxyType(
    {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        tuple: "a range",
        WholeNumbers: "one or several whole numbers",
    }
)


def _is_of(kind: Any, value: Any) -> bool:
    """Returns whether a value, which may come from a file, has the type of the flag's kind."""
    if kind is WholeNumbers:
        return isinstance(value, tuple) and len(value) > 0 and all(_is_of(int, v) for v in value)
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == 2 and all(_is_of(float, v) for v in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _format_number(number: float) -> str:
    """Formats a number for a message; an integer may be larger than any float."""
    if isinstance(number, int) and abs(number) >= 10**15:
        return f"about {'-' * (number < 0)}1e{math.log10(abs(number)):.0f}"
    return str(number) if isinstance(number, int) else f"{number:g}"
