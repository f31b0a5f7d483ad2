"""Where a run starts: fresh parameters, another run's scene, or a given mesh."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import trimesh

from dreamfusion_jax.config.flags import Config, read_config
from dreamfusion_jax.config.reproduce import format_flag_value
from dreamfusion_jax.diffusion.priors.prior import PriorParams
from dreamfusion_jax.distillation.objective import Objective
from dreamfusion_jax.mesh import given
from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.runs import distributed
from dreamfusion_jax.runs.checkpoint import load_run, steps_done
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath, as_path
from dreamfusion_jax.runtime.finite import require_finite
from dreamfusion_jax.training.fit_distance import fit_distance
from dreamfusion_jax.training.options import OptimizerOptions
from dreamfusion_jax.training.state import TrainState, init_state

_SAMPLES = 90_000  # of a mesh's distances
_BLUR_TOLERANCE = 1.01


class Source(NamedTuple):
    """What --init_from names: a run's folder, and the step of one checkpoint (None: the newest)."""

    workdir: AnyPath
    step: int | None


def check_start(config: Config) -> None:
    """Raises a UserError where --init_from or --init_mesh cannot be started from."""
    if config.train.init_from:
        _require_same_scene(config, find_source(config.train.init_from))
    if config.train.init_mesh:
        _read_mesh(config)


def initial_state(
    config: Config,
    scene: Scene,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    prior_params: PriorParams = None,
) -> TrainState:
    """Makes the state before the first step: the optimizer is fresh, wherever the scene is from."""
    state = init_state(scene, optimizer, config.train.seed, objective, prior_params)
    if config.train.init_from:
        start = _from_run(config, state.scene_params)
    elif config.train.init_mesh:
        start = _from_mesh(config, scene, state.scene_params)
    else:
        return state
    params = {**state.params, "scene": jax.tree.map(jnp.asarray, start)}
    return state._replace(params=params, opt_state=optimizer.init(params))


def find_source(name: str) -> Source:
    """Finds the run that --init_from names by its folder or by that of a checkpoint.

    Raises:
      UserError: there is none.
    """
    path, step = as_path(name), None
    if path.parent.name == "checkpoints" and re.fullmatch("[0-9]{1,18}", path.name):
        path, step = path.parent.parent, int(path.name)
    elif path.name == "checkpoints":
        path = path.parent
    if not (path / "config.json").exists():
        raise UserError(
            f"--init_from={name} holds no run; name the --workdir of one, or a folder in its"
            " checkpoints."
        )
    return Source(path, step)


def _require_same_scene(config: Config, source: Source) -> None:
    """Raises a UserError where the source's parameters would mean another scene here."""
    stored = read_config(source.workdir / "config.json")
    step = steps_done(source.workdir) if source.step is None else source.step
    theirs, ours = stored.scene, config.scene
    wanted = {name: value for name, value in theirs.shape().items() if getattr(ours, name) != value}
    if theirs.texture == "own" and ours.texture != "own":
        wanted["texture"] = "own"
    if theirs.encoding == ours.encoding:
        wanted |= _detail_lost(theirs.detail(step), ours.detail(0))
    if wanted:
        flags = " ".join(f"--{n}={format_flag_value(v)}" for n, v in wanted.items())
        raise UserError(
            f"--init_from={config.train.init_from} holds a scene of other settings; give {flags},"
            " as it has."
        )


def _detail_lost(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of `theirs` without which the scene would change at once."""
    lost = {}
    if "blur_start" in theirs:
        one, other = sorted((theirs["blur_start"], ours["blur_start"]))
        if other > _BLUR_TOLERANCE * one:
            lost["blur_start"] = theirs["blur_start"]
    if theirs.get("hash_start_level", 0) > ours.get("hash_start_level", 0):
        lost["hash_start_level"] = theirs["hash_start_level"]
    return lost


def _from_run(config: Config, fresh: Params) -> Params:
    """Returns the source's scene; a texture of its own starts as a copy of the shared network."""
    source = find_source(config.train.init_from)
    _require_same_scene(config, source)
    saved = load_run(source.workdir, source.step)
    params = saved.state.scene_params
    if config.scene.texture == "own" and saved.config.scene.texture != "own":
        params = {**params, "field": {"geometry": params["field"], "texture": params["field"]}}
    if distributed.is_primary():
        print(f"Starting from {source.workdir} after step {saved.state.step}.", flush=True)
    return {name: params[name] for name in fresh}  # maybe without the source's proposal


def _read_mesh(config: Config) -> trimesh.Trimesh:
    """Reads --init_mesh, scaled into the scene. Raises a UserError where that is not possible."""
    name = config.train.init_mesh
    path = as_path(name)
    try:
        mesh = given.read_mesh(path.read_bytes(), path.suffix[1:].lower())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--init_mesh={name} cannot be read as a mesh ({reason}); name a GLB, OBJ or PLY file."
        ) from error
    return given.into_sphere(mesh, config.train.init_mesh_radius * config.scene.bound_radius)


def _from_mesh(config: Config, scene: Scene, fresh: Params) -> Params:
    """Fits the distance field to --init_mesh."""
    mesh, seed = _read_mesh(config), config.train.seed
    if distributed.is_primary():
        print(f"Fitting the distance field to {config.train.init_mesh} ...", flush=True)
    try:
        samples = given.distance_samples(mesh, config.scene.bound_radius, _SAMPLES, seed)
    except ValueError as error:
        raise UserError(f"--init_mesh={config.train.init_mesh} has no inside ({error}).") from error
    rate = OptimizerOptions().suited_to(config.scene).learning_rate
    params = jax.device_get(fit_distance(scene, fresh, *samples, rate, seed))
    for leaf in jax.tree.leaves(params):
        require_finite(leaf, "What is fitted to --init_mesh", "give another --seed")
    return params
