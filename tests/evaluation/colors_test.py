"""Colors of assets against those of the prior's samples, on scenes and images of known color."""

import numpy as np
import pytest

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.distillation.view_prompts import NONE, PAPER
from dreamfusion_jax.evaluation import colors, report
from dreamfusion_jax.evaluation.chroma import lab
from dreamfusion_jax.evaluation.colors import Colors
from dreamfusion_jax.rendering import images
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.toybox.view_scheme import SCHEME
from dreamfusion_jax.training.state import TrainState
from tests.config.flags_test import parse

RED = np.array([0.85, 0.1, 0.1])


def test_lab_is_the_cie_s():
    """Of white, red, green and blue, as published for sRGB under D65."""
    rgb = np.concatenate([np.ones((1, 3)), np.eye(3)])
    published = [
        [100, 0, 0],
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
    ]
    np.testing.assert_allclose(lab(rgb), published, atol=0.05)


def test_difference_lightness_and_chroma_are_told_apart():
    compared = Colors(np.array([40.0, 30.0, 40.0]), np.array([52.0, 30.0, 40.0]))
    assert (compared.difference, compared.lightness, compared.chroma) == (12.0, -12.0, 0.0)
    paler = Colors(np.array([50.0, 3.0, 4.0]), np.array([50.0, 6.0, 8.0]))
    assert (paler.difference, paler.lightness, paler.chroma) == (5.0, 0.0, -5.0)


def on_background(shown, background, side=12):
    image = np.tile(background, (side, side, 1))
    image[3:9, 3:9] = shown
    image[3, 3:9] = (shown + background) / 2  # a blurred edge
    return image


def test_samples_count_by_their_object_without_its_outline():
    samples = np.stack(
        [on_background(RED, back) for back in (np.ones(3), np.array([0.0, 0.3, 0.9]))]
    )
    nothing = np.ones((1, 12, 12, 3))
    found = colors.sample_color(np.concatenate([samples, nothing]))
    np.testing.assert_allclose(found, lab(RED), atol=1e-6)


@pytest.mark.parametrize("opacity", [1.0, 0.7])
def test_an_asset_counts_without_the_background_behind_it(opacity, monkeypatch):
    """Half of each view is RED at this opacity; what is below a half is the background's."""

    def render_image(scene, params, view, size, step):
        assert view.diffuse == np.float32(images.DIFFUSE), "lit"
        opaque = np.zeros((size, size))
        opaque[:, : size // 2], opaque[:, -1] = opacity, 0.3
        mixed = opaque[..., None] * RED + (1 - opaque[..., None]) * np.asarray(view.background)
        return images.RenderedImage(mixed, opaque, opaque, mixed)

    monkeypatch.setattr(colors, "render_image", render_image)
    state = TrainState(np.int32(0), {"scene": {}}, None, None, None)
    run = SavedRun(Config(), None, state)
    np.testing.assert_allclose(colors.asset_color(run, 8), lab(RED), atol=1e-3)


def test_samples_are_asked_for_with_the_words_of_the_eight_views():
    assert colors.view_prompts("a mug", NONE) == ["a mug"] * 8
    paper = colors.view_prompts("a mug", PAPER)
    assert paper[0] == "a mug, front view" and paper[4] == "a mug, back view"
    assert len(set(colors.view_prompts("a mug", SCHEME))) == 8


def test_runs_of_equal_words_share_their_samples(monkeypatch):
    drawn = []

    def draw_samples(sampler, prompts, guidance, samples, steps, seed):
        drawn.append(prompts)
        return [np.zeros((samples, 4, 4, 3))] * len(prompts)

    monkeypatch.setattr(colors, "open_sampler", lambda options: None)
    monkeypatch.setattr(colors, "draw_samples", draw_samples)
    draw = colors.sampler({"toybox": SCHEME})
    for arguments in (("--prompt=a mug",), ("--prompt=a mug", "--steps=3"), ("--prompt=a cat",)):
        assert draw(parse(*arguments)).shape == (32, 4, 4, 3)
    assert len(drawn) == 2


def test_the_table_ends_with_the_mean():
    rows = {
        "w/a": Colors(np.array([40.0, 3.0, 4.0]), np.array([50.0, 3.0, 4.0])),
        "w/b": Colors(np.array([50.0, 0.0, 9.0]), np.array([50.0, 0.0, 5.0])),
    }
    table = [line.split() for line in report.color_table(rows).splitlines()]
    assert table[-1] == ["|", "mean", "|", "7.0", "|", "-5.0", "|", "+2.0", "|"]
    numbers = report.color_report(rows)
    assert numbers["mean_difference"] == 7.0 and numbers["assets"]["w/b"]["chroma"] == 4.0
