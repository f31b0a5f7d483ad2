"""Every setting of a run: frozen dataclasses, one command-line flag a field.

A field is declared once, with its default, its help text and the values it accepts; the flag, its
check and its place in config.json follow from that. The defaults are the toybox's: the embedded
prior on a laptop. Angles are in degrees, lengths in units of the scene (whose bounding sphere has
the radius `--bound_radius`).
"""

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

Range = tuple[float, float]

_CACHE_HELP = "folder for compiled programs ('auto': in the user's cache folder; 'none': no cache)"


def _setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that knows how to explain and check itself."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What is in the scene: the very fields of `nerf.scene.SceneOptions`."""

    field: str = _setting(
        "mip",
        "scene: an MLP on integrated positions, a voxel grid, or hashed grids with a small MLP",
        choices=("mip", "grid", "hash"),
    )
    bound_radius: float = _setting(1.0, "radius of the sphere that holds the scene", 0.1, 100)
    width: int = _setting(64, "units in a hidden layer of the MLP (paper: 128)", 1, 4096)
    depth: int = _setting(
        3, "hidden layers of the MLP, or its residual blocks (paper: 5 blocks)", 1, 64
    )
    network: str = _setting(
        "plain",
        "the MLP: plain layers with relu, or the paper's residual blocks with swish and LayerNorm",
        choices=("plain", "residual"),
    )
    min_degree: int = _setting(0, "lowest positional frequency, 2^min_degree", 0, 16)
    max_degree: int = _setting(5, "positional frequencies end before 2^max_degree", 1, 24)
    blur_start: float = _setting(
        5e-2, "variance added to each sample's Gaussian at the first step", 0, 1e2
    )
    blur_end: float = _setting(5e-3, "the same from --blur_steps on; it falls linearly", 0, 1e2)
    blur_steps: int = _setting(500, "steps over which that variance falls", 1, None)
    density_activation: str = _setting(
        "softplus", "what makes the density positive", choices=("softplus", "exp")
    )
    density_scale: float = _setting(20.0, "density per unit length at activation 1", 1e-3, 1e4)
    blob_scale: float = _setting(4.0, "height of the density blob the scene starts as", 0, 1e3)
    blob_radius: float = _setting(0.5, "radius of that blob (its width, if gaussian)", 1e-3, 100)
    blob_shape: str = _setting(
        "linear",
        "linear: scale (1 - r / radius); gaussian: scale exp(-r^2 / (2 radius^2))",
        choices=("linear", "gaussian"),
    )
    proposal_samples: int = _setting(
        32, "cheap samples a ray and round on the proposal grid (paper: 64; 0: none)", 0, 1024
    )
    proposal_rounds: int = _setting(
        1, "rounds of such samples, each placed by the one before (paper: 2)", 1, 8
    )
    proposal_resolution: int = _setting(32, "cells along a side of the proposal grid", 2, 512)
    fine_samples: int = _setting(20, "samples of the field a ray (paper: 32)", 1, 1024)
    grid_resolution: int = _setting(64, "cells along a side of --field=grid", 2, 512)
    normal_spacing: float = _setting(
        0.0, "normals by finite differences over this length (0: analytic, as in the paper)", 0, 1
    )
    hash_levels: int = _setting(16, "grids of --field=hash", 1, 32)
    hash_features: int = _setting(2, "numbers that each of its corners holds", 1, 16)
    hash_log2_rows: int = _setting(19, "logarithm of the rows of each grid's table", 4, 24)
    hash_coarsest: int = _setting(16, "cells along a side of the coarsest grid", 1, 4096)
    hash_finest: int = _setting(4096, "cells along a side of the finest grid", 1, 65535)
    hash_start_level: int = _setting(8, "grids that are seen from the first step on", 1, 32)
    hash_start_step: int = _setting(2000, "step at which the next grid fades in", 0, None)
    hash_level_steps: int = _setting(500, "steps that each further grid takes", 1, None)
    background: str = _setting(
        "solid",
        "solid: a new random colour every step; mlp: learned from the direction",
        choices=("solid", "mlp"),
    )


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """Where the training cameras stand: the very fields of `nerf.cameras.CameraRanges`."""

    distance: Range = _setting((2.3, 3.2), "range of distances from the origin", 1e-2, 1e3)
    fov_deg: Range = _setting((40.0, 55.0), "range of fields of view, in degrees", 1, 170)
    elevation_deg: Range = _setting((-10.0, 75.0), "range of elevations, in degrees", -90, 90)
    azimuth_deg: Range = _setting((0.0, 360.0), "range of azimuths, in degrees", -360, 360)
    area_share: float = _setting(
        0.0,
        "share of cameras whose elevation is uniform by area on the upper half-sphere instead"
        " (paper: 0.5)",
        0,
        1,
    )
    focal_multiplier: Range = _setting(
        (0.0, 0.0),
        "range of focal lengths in image widths (paper: 0.7,1.35; 0: from --fov_deg)",
        0,
        100,
    )
    position_jitter: float = _setting(
        0.0, "each coordinate of a camera is moved by up to this (paper: 0.1)", 0, 1e3
    )
    look_at_std: float = _setting(
        0.0, "spread, in each coordinate, of the point looked at (paper: 0.2)", 0, 1e3
    )
    up_std: float = _setting(0.0, "spread of the up vector about the vertical (paper: 0.02)", 0, 1)


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The frozen text-to-image model, and how its score becomes a gradient."""

    prior: str = _setting(
        "toybox",
        "'toybox' (embedded), or a Stable Diffusion in the diffusers layout: a folder or a hub id",
    )
    revision: str = _setting("", "branch, tag or commit of a hub id (empty: its main branch)")
    variant: str = _setting(
        "", "which of several precisions to read, such as fp16 (empty: the full one if it is there)"
    )
    prior_dtype: str = _setting(
        "auto",
        "the prior's number format (auto: bfloat16 on GPU and TPU, float32 on CPU)",
        choices=("auto", "float32", "bfloat16"),
    )
    vae_dtype: str = _setting(
        "auto",
        "the same of its autoencoder, which the gradient passes (auto: as --prior_dtype)",
        choices=("auto", "float32", "bfloat16"),
    )
    guidance_scale: float = _setting(
        6.0, "classifier-free guidance as diffusers counts it (1: none)", 0, 1e3
    )
    guidance_rescale: float = _setting(
        0.0, "share of the guided prediction that keeps the unguided one's spread", 0, 1
    )
    negative_prompt: str = _setting("", "what to guide away from (empty: from no text)")
    weighting: str = _setting(
        "sigma_over_alpha",
        "w(t): sigma_over_alpha takes the residual in x0; sigma2 is the paper's; one;"
        " alpha_over_sigma",
        choices=("sigma_over_alpha", "sigma2", "one", "alpha_over_sigma"),
    )
    weight_cap: float = _setting(10.0, "upper bound of w(t)", 1e-6, 1e9)
    residual_clip: float = _setting(
        0.0, "greatest norm of the residual in any one latent pixel (0: any)", 0, 1e9
    )
    gradient: str = _setting(
        "sds",
        "sds: the paper's; for study: sds_without_baseline, and full, the diffusion loss's own with"
        " the network's derivative",
        choices=("sds", "sds_without_baseline", "full"),
    )
    t_min: float = _setting(0.1, "least diffusion time t in (0, 1)", 1e-4, 0.9999)
    t_max_start: float = _setting(0.95, "greatest t at the first step", 1e-4, 0.9999)
    t_max_end: float = _setting(0.5, "greatest t at the last step, reached linearly", 1e-4, 0.9999)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is optimised, for how long, and how the views of a step are drawn."""

    prompt: str = _setting("", "what to make, for example 'a red chair'")
    steps: int = _setting(1000, "optimisation steps", 1, 10_000_000)
    seed: int = _setting(0, "seed of everything random", 0, 2**31 - 1)
    views_per_device: int = _setting(1, "views a step on each device", 1, 4096)
    render_size: int = _setting(
        0, "side of a training render in pixels (0: the prior's own image size)", 0, 4096
    )
    opacity_weight: float = _setting(
        0.0, "weight of sqrt(opacity^2 + 0.01) (paper: 1e-3 to 5e-3)", 0, 1e9
    )
    orientation_weight: float = _setting(
        0.0,
        "weight of the penalty on normals that face away from the camera (paper: 1e-2)",
        0,
        1e9,
    )
    orientation_start: float = _setting(
        0.0, "that weight at the first step; it rises linearly (paper: 1e-4)", 0, 1e9
    )
    orientation_steps: int = _setting(1, "steps over which it rises (paper: 5000)", 1, None)
    distortion_weight: float = _setting(0.0, "weight of the spread along each ray", 0, 1e9)
    entropy_weight: float = _setting(0.0, "weight of the entropy of each pixel's opacity", 0, 1e9)
    interlevel_weight: float = _setting(
        1.0, "weight of the loss that teaches the proposal grid where the scene is", 0, 1e9
    )
    shading_start_step: int = _setting(200, "steps before this show the unlit albedo", 0, None)
    lit_probability: float = _setting(0.5, "share of later views lit by a point light", 0, 1)
    textureless_probability: float = _setting(0.3, "share of lit views with a white albedo", 0, 1)
    ambient: Range = _setting((0.1, 0.5), "range of ambient light; the rest is diffuse", 0, 1)
    light_distance: Range = _setting((0.8, 1.5), "range of the light's distance", 1e-2, 1e3)
    solid_background_share: float = _setting(
        0.5,
        "share of views before a plain colour although --background=mlp (paper: 0), lest the"
        " background paint what the object should be made of",
        0,
        1,
    )
    view_words: str = _setting(
        "toybox",
        "words added for the camera: toybox (eight azimuths, three elevations), paper"
        " (overhead, front, side, back) or none",
        choices=("toybox", "paper", "none"),
    )
    interpolate_views: bool = _setting(
        False, "mix the embeddings of the two nearest views' words instead of taking the nearest"
    )
    negative_views: bool = _setting(
        False, "complete the negative prompt with all other views' words (--view_words=paper)"
    )
    perp_neg: bool = _setting(
        False,
        "Perp-Neg: guide away from neighbouring views, too, at twice the cost (--view_words=paper)",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates, and at which rate."""

    optimizer: str = _setting(
        "adam", "the paper's Shampoo has no kept library", choices=("adam", "adan")
    )
    learning_rate: float = _setting(
        5e-3, "learning rate at the first step after the warm-up (paper: 1e-4)", 1e-12, 10
    )
    learning_rate_final: float = _setting(
        5e-4, "learning rate at the last step (paper: 1e-6)", 1e-12, 10
    )
    learning_rate_decay: str = _setting(
        "exponential", "how it falls in between (paper: cosine)", choices=("exponential", "cosine")
    )
    warmup_steps: int = _setting(
        0, "steps over which the learning rate first rises, linearly (paper: 3000)", 0, None
    )
    warmup_learning_rate: float = _setting(
        1e-9, "learning rate that the warm-up starts from (paper: 1e-9)", 0, 10
    )
    adam_b1: float = _setting(0.9, "Adam's decay of the first moment", 0, 0.999999)
    adam_b2: float = _setting(0.999, "Adam's decay of the second moment", 0, 0.999999)
    adam_eps: float = _setting(1e-8, "Adam's and Adan's epsilon", 1e-30, 1)
    gradient_clip: float = _setting(
        0.0, "greatest norm of all gradients together (0: any)", 0, 1e12
    )
    proposal_rate: float = _setting(
        1.0, "the proposal's learning rate as a multiple of the others'", 0, 1e3
    )
    background_rate: float = _setting(
        1.0, "the learned background's learning rate as a multiple of the others'", 0, 1e3
    )
    network_rate: float = _setting(
        1.0, "the same of the MLP behind --field=hash, whose tables keep the full rate", 0, 1e3
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where and how to run and what to leave behind. May change when a run is continued."""

    workdir: str = _setting("", "folder of the results (empty: workdir/<the prompt's words>)")
    devices: int = _setting(0, "local devices to use (0: all)", 0, 4096)
    compilation_cache: str = _setting("auto", _CACHE_HELP)
    log_every: int = _setting(20, "steps between lines of metrics", 1, None)
    preview_every: int = _setting(100, "steps between preview pictures", 1, None)
    checkpoint_every: int = _setting(250, "steps between checkpoints", 1, None)
    preview_size: int = _setting(64, "side of each preview picture, in pixels", 8, 2048)
    sheet_size: int = _setting(96, "side of each contact sheet picture, in pixels", 8, 2048)
    turntable_size: int = _setting(128, "side of the turntable, in pixels; even", 8, 2048)
    turntable_frames: int = _setting(48, "frames of the turntable, once around", 1, 3600)
    mesh_resolution: int = _setting(96, "grid points along a side to find the mesh on", 8, 1024)
    mesh_threshold: float = _setting(
        10.0, "density (per unit length) at which the mesh's surface lies", 1e-6, 1e9
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
    """Defines one flag a field, under the field's own name; all of them, or those in `names`."""
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
    for name in ("t_max_start", "t_max_end"):
        if getattr(config.prior, name) <= config.prior.t_min:
            raise UserError(f"--{name} must be greater than --t_min ({config.prior.t_min}).")
    if config.scene.max_degree <= config.scene.min_degree:
        raise UserError(f"--max_degree must exceed --min_degree ({config.scene.min_degree}).")
    for name in ("negative_views", "perp_neg"):
        if getattr(config.train, name) and config.train.view_words != "paper":
            raise UserError(f"--{name} needs --view_words=paper.")
    if config.run.workdir:
        return config
    workdir = str(Path("workdir") / _slug(config.train.prompt))
    return dataclasses.replace(config, run=dataclasses.replace(config.run, workdir=workdir))


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


def _slug(prompt: str) -> str:
    """The prompt as a folder's name: lower-case words joined by hyphens."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    return "-".join(words)[:80] or "untitled"
