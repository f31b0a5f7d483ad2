"""The second stage of a run: from the settings of the first to those that refine its scene."""

from __future__ import annotations

import dataclasses
import functools

from dreamfusion_jax.config.flags import Config, config_from_settings, validate

# What the second stage takes from the preset `refine`, by section; all else is the first stage's.
_REFINED = {
    "scene": ("render", "texture", "hash_start_step", "hash_level_steps"),
    "distillation": ("t_max_start", "t_max_end"),
    "train": (
        *("shading_start_step", "lit_probability", "eikonal_weight", "smoothness_weight"),
        *("render_size", "render_milestones", "half_size_steps"),
    ),
    "optimizer": ("learning_rate", "learning_rate_final", "warmup_steps", "freeze"),
}


def second_stage(config: Config, source: str, workdir: str) -> Config:
    """Returns the settings of the second stage of a run with `--second_stage_steps`.

    The detail of the scene, its blur or the levels of its hash grids, goes on where the first stage
    ends; so does the sharpness of its edges. The geometry is frozen for the same share of the steps
    as by the preset.

    Args:
      source: the folder of the first stage, once it is done.
      workdir: that of the second.
    """
    refine, steps = _refine(), config.train.second_stage_steps
    sections = {
        name: {field: getattr(getattr(refine, name), field) for field in fields}
        for name, fields in _REFINED.items()
    }
    sections["scene"] |= config.scene.detail(config.train.steps)
    sections["scene"] |= {"sdf_beta_start": config.scene.sdf_beta_end}
    sections["train"] |= {
        **{"steps": steps, "second_stage_steps": 0},
        **{"init_from": source, "init_mesh": ""},
    }
    frozen = steps * refine.optimizer.freeze_steps // refine.train.steps
    sections["optimizer"] |= {"freeze_steps": max(frozen, 1)}
    sections["run"] = {"workdir": workdir}
    return validate(
        dataclasses.replace(
            config,
            **{
                name: dataclasses.replace(getattr(config, name), **values)
                for name, values in sections.items()
            },
        )
    )


@functools.cache
def _refine() -> Config:
    return config_from_settings("refine", {"prompt": "anything"})
