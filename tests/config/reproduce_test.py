import dataclasses
import shlex

import pytest

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import PRESETS, Config
from tests.config.flags_test import parse


def parse_arguments(config: Config) -> Config:
    return parse(*reproduce.arguments(config))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("--distance=1.5", "--fov_deg=30,60", "--learning_rate=1e-7", "--steps=7"),
        ("--field=image", "--render=volume", "--texture=shared", "--freeze=none"),
        ("--negative_prompt=ugly, 'bad' and \"worse\"", "--workdir=a folder/with spaces"),
        ("--interpolate_views=true", "--max_skipped_steps=3", "--prior=some/model"),
    ],
)
def test_the_command_reproduces_the_run(preset, changes):
    config = parse('--prompt=it\'s a "red" chair, 100 %', f"--preset={preset}", *changes)
    assert parse_arguments(config) == config
    assert shlex.split(reproduce.shell_command(config))[3:] == reproduce.arguments(config)


def test_the_command_is_as_short_as_possible():
    assert reproduce.arguments(parse("--prompt=a mug")) == ["--prompt=a mug"]
    assert reproduce.arguments(parse("--prompt=a mug", "--preset=sd", "--steps=5")) == [
        "--prompt=a mug",
        "--preset=sd",
        "--steps=5",
    ]


def test_settings_of_one_process_are_left_out():
    config = parse("--prompt=a mug")
    run = dataclasses.replace(config.run, coordinator="host:1", processes=4, process_index=2)
    assert parse_arguments(dataclasses.replace(config, run=run)) == config
