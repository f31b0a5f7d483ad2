import dataclasses
import json
from pathlib import Path

import pytest
from absl import flags

from dreamfusion_jax.config import flags as configs
from dreamfusion_jax.runs.options import RunOptions
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.training.options import OptimizerOptions, TrainOptions


def parse(*arguments: str) -> configs.Config:
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    configs.parse_flags(["program", *arguments], values)
    return configs.config_from_flags(values)


def with_train(config: configs.Config, **changes) -> configs.Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_flags_without_values_give_the_defaults():
    config = parse("--prompt=a red chair")
    run = dataclasses.replace(RunOptions(), workdir="workdir/a-red-chair")
    optimizer = OptimizerOptions(learning_rate=5e-3, learning_rate_final=5e-4, warmup_steps=0)
    train = TrainOptions(prompt="a red chair")
    assert config == configs.Config(train=train, optimizer=optimizer, run=run)


def test_every_setting_is_a_flag_with_help_and_a_name_of_its_own():
    settings = [s for section in configs.SECTIONS.values() for s in dataclasses.fields(section)]
    names = [setting.name for setting in settings]
    former = {setting.metadata["former_name"] for setting in settings} - {None}
    assert len(names) == len(set(names)) and not former & set(names)
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    assert {*names, "preset", *former} == set(values)
    assert all(len(values[name].help) > 15 for name in names)


def test_a_renamed_flag_keeps_its_old_name():
    config = parse("--prompt=x", "--preset=paper", "--area_share=0.25", "--normal_spacing=0.01")
    assert parse("--prompt=x", "--gradient=full").distillation.objective == "full"
    assert (config.camera.uniform_area_prob, config.scene.fd_epsilon) == (0.25, 0.01)
    settings = {"prompt": "x", "area_share": 0.25}
    assert configs.config_from_settings("paper", settings).camera.uniform_area_prob == 0.25
    assert parse("--prompt=x", "--preset=paper").camera.uniform_area_prob == 0.5


def test_values_survive_flags_and_json():
    config = parse(
        "--prompt=x", "--distance=2.5", "--fov_deg=30,60", "--steps=7", "--field=grid", "--t_min=.2"
    )
    assert config.camera.distance == (2.5, 2.5)
    assert config.camera.fov_deg == (30.0, 60.0)
    assert (config.train.steps, config.scene.field, config.distillation.t_min) == (7, "grid", 0.2)
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


@pytest.mark.parametrize(
    "argument",
    [
        "--prompt= ",
        "--steps=0",
        "--learning_rate=nan",
        "--guidance_scale=inf",
        "--fov_deg=60,30",
        "--t_max_end=0.01",
        "--t_min=0",
        "--max_degree=0",
        "--hash_finest=8",
        "--turntable_size=65",
        "--lit_probability=1.5",
        "--seed=-1",
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_flag(argument):
    with pytest.raises(UserError, match=argument.split("=")[0]):
        parse("--prompt=x", argument)


@pytest.mark.parametrize("argument", ["--steps=many", "--distance=1,2,3", "--field=sphere"])
def test_a_value_of_the_wrong_kind_is_refused_at_parsing(argument):
    with pytest.raises(flags.Error, match=argument.split("=")[0].lstrip("-")):
        parse("--prompt=x", argument)


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.cfg"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_flagfiles_parse_and_their_prompts_can_be_overridden(path):
    assert parse(f"--flagfile={path}").train.prompt
    assert parse(f"--flagfile={path}", "--prompt=a blue mug").train.prompt == "a blue mug"


def preset_settings(name: str) -> dict[str, str]:
    """What a preset's flagfile says."""
    lines = configs.PRESETS[name].read_text().splitlines()
    pairs = [line[2:].split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len(dict(pairs)) == len(pairs), "a flag is set twice"
    return dict(pairs)


def test_the_toybox_preset_is_the_default():
    assert parse("--prompt=x", "--preset=toybox") == parse("--prompt=x")


def test_presets_are_whole_and_set_the_same_flags():
    toybox, *others = (preset_settings(name) for name in configs.PRESETS)
    assert len(toybox) > 50
    for other in others:
        assert other.keys() == toybox.keys()


def test_help_texts_hold_the_papers_values():
    values = flags.FlagValues()
    configs.define_flags(flag_values=values)
    differing = configs.conflicting_settings(
        parse("--prompt=x"), parse("--prompt=x", "--preset=paper")
    )
    assert len(differing) > 40
    for name in differing:
        assert "paper" in values[name].help, name


@pytest.mark.parametrize("name", configs.PRESETS)
def test_other_flags_overrule_a_preset_wherever_it_stands(name, tmp_path):
    flagfile = tmp_path / "mine.cfg"
    flagfile.write_text(f"--width=77\n--preset={name}\n--prompt=a cup\n")
    expected = parse("--prompt=a cup", f"--preset={name}")
    scene = dataclasses.replace(expected.scene, width=77)
    assert parse(f"--flagfile={flagfile}") == dataclasses.replace(expected, scene=scene)
    assert parse("--width=77", "--prompt=a cup", "--preset", name).scene == scene
    assert expected.scene.width != 77


@pytest.mark.parametrize(
    "field, rates",
    [
        (["--field=hash"], (1e-2, 1e-2, 0)),
        (["--field=grid"], (1e-2, 1e-2, 0)),
        (["--field=mip", "--network=residual"], (3e-4, 3e-5, 100)),
        (["--field=mip", "--network=plain"], (5e-3, 5e-4, 0)),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_an_open_rate_is_chosen_by_the_field(field, rates):
    open_rates = ["--learning_rate=0", "--learning_rate_final=0", "--warmup_steps=-1"]
    optimizer = parse("--prompt=x", *field, *open_rates).optimizer
    actual = (optimizer.learning_rate, optimizer.learning_rate_final, optimizer.warmup_steps)
    assert actual == pytest.approx(rates)
    given = parse("--prompt=x", *field, *open_rates, "--learning_rate=0.1").optimizer
    assert given.learning_rate == 0.1
    assert given.learning_rate_final == pytest.approx(0.1 * rates[1] / rates[0])


def test_the_sd_preset_has_threestudios_field_and_rates():
    config = parse("--prompt=x", "--preset=sd")
    assert (config.scene.field, config.scene.width, config.scene.depth) == ("hash", 64, 1)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.learning_rate_final) == (1e-2, 1e-2)
    assert optimizer.background_rate == 0.1
    assert (config.train.orientation_start, config.train.orientation_weight) == (10, 1000)
    assert config.train.opacity_weight == 1 and config.camera.elevation_deg == (-10, 45)
    residual = parse("--prompt=x", "--preset=sd", "--field=mip").optimizer
    assert (residual.learning_rate, residual.warmup_steps) == (3e-4, 100)


def test_a_flat_image_takes_the_plain_prompt():
    assert parse("--prompt=x", "--field=image").view_prompts.view_words == "none"
    with pytest.raises(UserError, match="--perp_neg"):
        parse("--prompt=x", "--field=image", "--view_words=paper", "--perp_neg")


def test_conflicting_settings_are_those_of_another_run():
    config = parse("--prompt=x", "--steps=10")
    assert (
        configs.conflicting_settings(config, parse("--prompt=x", "--steps=20", "--devices=1")) == {}
    )
    assert list(configs.conflicting_settings(config, with_train(config, steps=5))) == ["steps"]
    other = parse("--prompt=y", "--steps=10", "--width=8", "--guidance_scale=7")
    conflicts = configs.conflicting_settings(config, other)
    assert list(conflicts) == ["width", "guidance_scale", "prompt"]
    assert conflicts["prompt"] == ("x", "y")


def test_a_broken_config_file_is_named(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(UserError, match="config.json"):
        configs.read_config(path)
    for text in ("{", "[]", '{"train": {"no_such_setting": 1}}'):
        path.write_text(text)
        with pytest.raises(UserError, match="config.json"):
            configs.read_config(path)


def test_slugs_are_safe_folder_names():
    assert parse("--prompt=A Red/Chair, ../please!").run.workdir == "workdir/a-red-chair-please"
    assert parse("--prompt=???").run.workdir.startswith("workdir/untitled-")


def test_render_sizes_are_one_or_several_whole_numbers():
    one = parse("--prompt=x", "--render_size=64").train
    assert (one.render_size, one.render_milestones) == ((64,), (0,))
    several = parse("--prompt=x", "--render_size=64,256", "--render_milestones=5000")
    assert (several.train.render_size, several.train.render_milestones) == ((64, 256), (5000,))
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(several)))) == several
    settings = {"prompt": "x", "render_size": 64}
    assert configs.config_from_settings("toybox", settings).train.render_size == (64,)
    earlier = {"train": {"render_size": 64}}  # a config.json of one number
    assert configs.from_dict(earlier).train.render_size == (64,)
