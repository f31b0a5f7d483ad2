"""Reports of scores: groups, names, settings, tables; and the gallery."""

import json

import numpy as np
import pytest

from dreamfusion_jax.evaluation import gallery, report
from dreamfusion_jax.evaluation.gallery import SIZE, Shown
from dreamfusion_jax.evaluation.judges import Candidates, Judge
from dreamfusion_jax.evaluation.score import Score, ScoredRun

CANDIDATES = Candidates("prompts", np.zeros((7, 3)), len)
JUDGE = Judge("owner/clip@0123", "ab" * 32, 224, len, CANDIDATES, CANDIDATES, None)
SEEN = ScoredRun("a red | cup", 0, "w/1", False, 9, 60.0, {"steps": 9}, Score(1.0, 0.5, 0.25, None))
HIDDEN = ScoredRun(
    "a cyan mug", 0, "w/2", True, 9, None, {"steps": 9, "width": 8}, Score(0.5, 0.5, 0.75, None)
)
FLOOR = Score(0.125, 0.0, 0.25, None)


def test_assets_fall_into_groups_where_all_name_a_pair():
    assert report.groups([SEEN, HIDDEN]) == {
        "all": [SEEN, HIDDEN],
        "seen pairs": [SEEN],
        "held-out pairs": [HIDDEN],
    }
    assert list(report.groups([SEEN, HIDDEN._replace(held_out=None)])) == ["all"]
    assert list(report.groups([SEEN])) == ["all", "seen pairs"]


def test_the_numbers_tell_who_judged_what_and_how_it_was_made():
    numbers = json.loads(json.dumps(report.report(JUDGE, [SEEN, HIDDEN], FLOOR)))
    assert numbers["judge"] == {"name": "owner/clip@0123", "sha256": "ab" * 32}
    assert numbers["views"]["count"] == 8 and numbers["views"]["render_size"] == 224
    assert numbers["settings_beside_the_defaults"] == {"steps": 9}
    assert [asset["settings"] for asset in numbers["assets"]] == [{}, {"width": 8}]
    together = numbers["groups"]["all"]
    assert together["assets"] == 2 and together["seconds"] == 60.0
    assert together["mean"]["r_precision/textureless/7 prompts/owner/clip@0123"] == 0.5
    errors = together["standard_error_over_prompts"]
    assert errors["r_precision/albedo/7 prompts/owner/clip@0123"] == 0.25
    floor = numbers["untrained_scene"]
    assert floor["r_precision/albedo/7 prompts/owner/clip@0123"] == 0.125
    second = numbers["assets"][1]
    assert second["prompt"] == "a cyan mug" and second["held_out"] and second["seconds"] is None
    assert second["r_precision/shaded/7 prompts/owner/clip@0123"] == 0.5


def cells(table):
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1, "columns stand below each other"
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_the_summary_has_a_row_a_metric_by_its_full_name():
    heading, _, albedo, *_, assets, seconds = cells(
        report.summary_table(JUDGE, [SEEN, HIDDEN], FLOOR)
    )
    assert heading == ["metric", "all", "seen pairs", "held-out pairs", "untrained"]
    name = "r_precision/albedo/7 prompts/owner/clip@0123"
    assert albedo == [name, "75.0 % ± 25.0", "100.0 %", "50.0 %", "12.5 %"]
    assert assets == ["assets", "2", "1", "1", "-"]
    assert seconds == ["seconds/asset", "60", "60", "-", "-"]


def test_the_table_of_assets_has_a_row_an_asset():
    _, _, first, second = cells(report.asset_table(JUDGE, [SEEN, HIDDEN]))
    assert first == ["a red \\| cup", "0", "seen", "100.0 %", "50.0 %", "25.0 %", "60"]
    assert second[:3] == ["a cyan mug", "0", "held out"] and second[-1] == "-"


@pytest.mark.parametrize("count", [1, 8, 11])
def test_the_gallery_shows_every_asset_above_its_prompt(count):
    plain = [np.full((SIZE, SIZE, 3), (8 + 9 * i) / 255) for i in range(2 * count)]
    assets = [Shown("a cup", plain[2 * i], plain[2 * i + 1]) for i in range(count)]
    image = gallery.gallery(assets)
    columns, rows = min(count, 8), -(-count // 8)
    width, height = image.shape[1] // columns, image.shape[0] // rows
    for i in range(count):
        top, left = i // 8 * height, i % 8 * width
        cell = image[top : top + height, left : left + width]
        for side, level in enumerate((8 + 18 * i, 17 + 18 * i)):
            assert (cell == level).all(-1).sum() >= SIZE * SIZE
            assert (cell[SIZE // 2, SIZE // 2 + side * SIZE] == level).all()
        assert (cell[SIZE:].min(-1) < 100).any(), "the prompt"
    assert columns < 8 or image.shape[1] == 1600


def test_long_prompts_are_broken_and_the_longest_cut():
    plain = np.ones((SIZE, SIZE, 3))
    heights = [
        gallery.gallery([Shown(prompt, plain, plain)]).shape[0]
        for prompt in (
            "a cup",
            "a small red cup on " + "a table " * 3,
            "word " * 60,
            "word " * 99,
            "x" * 300,
        )
    ]
    one, two, three, more, unbroken = heights
    assert one < two < three == more and unbroken == one
