import dataclasses
import shlex

import pytest

from dreamfusion_jax.config import reproduce
from dreamfusion_jax.config.flags import PRESETS, Config
from tests.config.flags_test import parse


def again(config: Config) -> Config:
    return parse(*reproduce.arguments(config))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("--distance=1.5", "--fov_deg=30,60", "--learning_rate=1e-7", "--steps=7"),
        ("--field=image",),
        ("--negative_prompt=ugly, 'bad' and \"worse\"", "--workdir=a folder/with spaces"),
        ("--interpolate_views=true", "--max_skipped_steps=3", "--prior=some/model"),
    ],
)
def test_the_command_makes_the_same_run_again(preset, changes):
    config = parse('--prompt=it\'s a "red" chair, 100 %', f"--preset={preset}", *changes)
    assert again(config) == config
    assert shlex.split(reproduce.shell_command(config))[3:] == reproduce.arguments(config)


def test_it_says_no_more_than_needed():
    assert reproduce.arguments(parse("--prompt=a mug")) == ["--prompt=a mug"]
    assert reproduce.arguments(parse("--prompt=a mug", "--preset=sd", "--steps=5")) == [
        "--prompt=a mug",
        "--preset=sd",
        "--steps=5",
    ]


def test_a_process_of_many_is_not_repeated():
    config = parse("--prompt=a mug")
    run = dataclasses.replace(config.run, coordinator="host:1", processes=4, process_index=2)
    assert again(dataclasses.replace(config, run=run)) == config
