"""The ablation's recipes, and how its results are shown."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dreamfusion_jax import ablation
from dreamfusion_jax.config.flags import conflicting_settings
from dreamfusion_jax.evaluation.judges import prompt_pair
from dreamfusion_jax.evaluation.score import Score
from dreamfusion_jax.evaluation.views import AssetViews
from dreamfusion_jax.toybox import captions
from tests.config.flags_test import parse

ADDED = {
    "views": ["distance", "fov_deg", "elevation_deg"],
    "words": ["view_words"],
    "light": ["lit_probability", "textureless_probability"],
    "full": ["textureless_probability"],
}


def test_every_recipe_adds_one_thing_and_the_last_is_the_default():
    configs = {r: parse("--prompt=x", *flags) for r, flags in ablation.RECIPES.items()}
    assert configs["full"] == parse("--prompt=x")
    for before, after in itertools.pairwise(configs):
        assert conflicting_settings(configs[before], configs[after]) == ADDED[after]
    assert ablation.TITLES.keys() == configs.keys()


def test_default_prompts_are_of_kinds_with_a_front():
    prompts = ablation.default_prompts()
    assert len(set(prompts)) == 4 and set(prompts) <= set(captions.benchmark_prompts())
    assert all(prompt_pair(prompt)[1] in captions.KINDS_WITH_FRONT for prompt in prompts)


def test_every_recipe_is_made_for_all_prompts_in_its_own_folder(monkeypatch):
    calls = []
    monkeypatch.setattr(
        ablation.benchmark_runner,
        "make_assets",
        lambda *asset, **more: calls.append((*asset, more)),
    )
    prompts = ["a red cup", "a blue car"]
    ablation.make_assets(Path("there"), prompts, ["--steps=3"])
    assert calls == [
        (prompts, Path("there") / recipe, {"arguments": [*arguments, "--steps=3"]})
        for recipe, arguments in ablation.RECIPES.items()
    ]
    assert ablation.folder(Path("there"), "base", "a red cup") == Path("there/base/a-red-cup")


def test_the_table_shows_the_mean_over_the_prompts():
    scores = {
        "base": {"a": Score(0.5, 1.0, 0.25, 3), "b": Score(1.0, 1.0, 0.0, None)},
        "full": {"a": Score(1.0, 1.0, 1.0, None), "b": Score(1.0, 0.0, 1.0, None)},
    }
    base, full = ablation.table(scores).splitlines()[2:]
    assert base == "| base: unlit, one height | 75.0 % | 100.0 % | 12.5 % | 3.00 |"
    assert full == "| + textureless | 100.0 % | 50.0 % | 100.0 % | - |"


@pytest.mark.parametrize(("recipe", "prompt"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_grid_has_recipes_as_columns_and_prompts_as_rows(recipe, prompt):
    """One asset is white from the front left and red from behind, gray without texture."""
    black, seen = np.zeros((8, 4, 4, 3)), np.zeros((8, 4, 4, 3))
    seen[ablation.SHOWN_AZIMUTHS[0]], seen[ablation.SHOWN_AZIMUTHS[1]] = 1.0, (1.0, 0.0, 0.0)
    views = {r: {p: AssetViews(black, black, black) for p in "pq"} for r in ("base", "full")}
    views[("base", "full")[recipe]]["pq"[prompt]] = AssetViews(
        seen, black, 0.5 * np.ones_like(seen)
    )
    grid, size = ablation.comparison(views), 2 * ablation.CELL
    assert grid.shape == (2 * size + ablation.MARGIN, 2 * size + ablation.MARGIN, 3)
    scene = grid[ablation.MARGIN :, ablation.MARGIN :]
    cells = scene.reshape(2, size, 2, size, 3).swapaxes(1, 2)
    quarter = ablation.CELL // 2
    for row, column in itertools.product(range(2), repeat=2):
        cell = cells[row, column]
        if (row, column) != (prompt, recipe):
            assert not cell.any()
            continue
        assert (cell[quarter, quarter] == 255).all()
        assert (cell[quarter, -quarter] == (255, 0, 0)).all()
        assert (cell[-quarter, quarter] == 128).all()
    assert (grid[: ablation.MARGIN] == 0).any() and (grid[:, : ablation.MARGIN] == 0).any(), (
        "titles"
    )
