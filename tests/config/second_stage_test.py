"""The settings of a second stage: the preset's, and what goes on from the first."""

import pytest

from dreamfusion_jax.config.flags import config_from_settings
from dreamfusion_jax.config.second_stage import second_stage
from dreamfusion_jax.runtime.errors import UserError
from tests.config.flags_test import parse

SDF = ("--prompt=a mug", "--field=sdf", "--second_stage_steps=100")


def refined(*arguments):
    return second_stage(parse(*SDF, *arguments), "w/first_stage", "w")


def test_the_second_stage_has_the_schedule_of_the_preset():
    config, preset = refined(), config_from_settings("refine", {"prompt": "a mug"})
    assert (config.scene.render, config.scene.texture) == ("surface", "own")
    assert config.distillation == preset.distillation and config.camera == preset.camera
    assert config.optimizer.learning_rate == preset.optimizer.learning_rate
    assert config.optimizer.freeze_steps == 30, "the same share of the steps"
    assert (config.train.steps, config.train.second_stage_steps) == (100, 0)
    assert (config.train.init_from, config.run.workdir) == ("w/first_stage", "w")


def test_what_the_user_chose_holds_in_both_stages():
    config = refined("--seed=3", "--width=8", "--guidance_scale=9", "--ambient=0.3,0.6")
    assert (config.train.seed, config.scene.width) == (3, 8)
    assert (config.distillation.guidance_scale, config.train.ambient) == (9.0, (0.3, 0.6))


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--steps=250", "--blur_start=0.05", "--blur_end=0.01"), "blur_start", 0.03),
        (("--steps=800", "--blur_end=0.01"), "blur_start", 0.01),
        (
            ("--sdf_encoding=hash", "--hash_start_level=4", "--hash_start_step=0", "--steps=1000"),
            "hash_start_level",
            6,
        ),
        (("--sdf_beta_end=0.02",), "sdf_beta_start", 0.02),
    ],
)
def test_detail_goes_on_where_the_first_stage_ends(arguments, name, value):
    assert getattr(refined(*arguments).scene, name) == pytest.approx(value)


def test_a_density_has_no_second_stage():
    with pytest.raises(UserError, match="--second_stage_steps=100 needs --field=sdf"):
        parse("--prompt=a mug", "--field=mip", "--second_stage_steps=100")
