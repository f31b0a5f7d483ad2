"""Settings that exclude each other, or need each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.training.options import check_stages

if TYPE_CHECKING:
    from dreamfusion_jax.config.flags import Config


def check_combinations(config: Config) -> None:
    """Raises a UserError where settings, each of which is well, do not fit each other."""
    for name in ("t_max_start", "t_max_end"):
        if getattr(config.distillation, name) <= config.distillation.t_min:
            raise UserError(f"--{name} must be greater than --t_min ({config.distillation.t_min}).")
    if config.scene.max_degree <= config.scene.min_degree:
        raise UserError(f"--max_degree must exceed --min_degree ({config.scene.min_degree}).")
    if config.scene.hash_finest < config.scene.hash_coarsest:
        raise UserError(f"--hash_finest must reach --hash_coarsest ({config.scene.hash_coarsest}).")
    for name in ("negative_views", "perp_neg"):
        if getattr(config.view_prompts, name) and config.view_prompts.view_words != "paper":
            raise UserError(f"--{name} needs --view_words=paper.")
    for name in ("revision", "variant"):
        if getattr(config.prior, name) and config.prior.prior == "toybox":
            raise UserError(f"--{name} needs another --prior than the toybox, which has only one.")
    check_stages(config.train)
    _check_surface(config)
    _check_processes(config.run)


def _check_surface(config: Config) -> None:
    if config.scene.field != "sdf":
        for name, section in (("render", config.scene), ("init_mesh", config.train)):
            value = getattr(section, name)
            if value not in ("", "volume"):
                raise UserError(f"--{name}={value} needs --field=sdf.")
    if config.train.second_stage_steps and config.scene.field != "sdf":
        raise UserError(
            f"--second_stage_steps={config.train.second_stage_steps} needs --field=sdf."
        )
    if config.train.init_mesh and config.train.init_from:
        raise UserError("--init_mesh contradicts --init_from; give one of them.")
    if config.optimizer.freeze != "none" and config.scene.texture != "own":
        raise UserError(f"--freeze={config.optimizer.freeze} needs --texture=own.")
    if config.scene.texture == "own" and config.scene.field == "image":
        raise UserError("--texture=own needs another --field than image, which is a texture.")


def _check_processes(run: RunOptions) -> None:
    if bool(run.coordinator) != bool(run.processes):
        raise UserError("--coordinator and --processes must be given together.")
    if run.coordinator and run.distributed == "off":
        raise UserError("--coordinator contradicts --distributed=off.")
    if run.coordinator and not re.fullmatch(r"\S+:\d{1,5}", run.coordinator):
        raise UserError(f"--coordinator must be host:port, not {run.coordinator!r:.80}.")
    if run.process_index >= max(run.processes, 1):
        raise UserError(f"--process_index must be less than --processes ({run.processes}).")
