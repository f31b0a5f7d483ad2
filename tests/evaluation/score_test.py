"""The scores of an asset, with a judge whose answers are set."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.config.flags import Config
from dreamfusion_jax.evaluation import score
from dreamfusion_jax.evaluation.judges import Candidates, Judge, prompt_pair
from dreamfusion_jax.evaluation.score import Score, ScoredRun
from dreamfusion_jax.evaluation.views import BACKGROUND, AssetViews, asset_views, views_of_run
from dreamfusion_jax.nerf.cameras import CameraRanges
from dreamfusion_jax.nerf.scene import SceneOptions, make_scene
from dreamfusion_jax.rendering.images import Orbit
from dreamfusion_jax.runs.checkpoint import SavedRun
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.training.options import TrainOptions
from dreamfusion_jax.training.state import TrainState

PAIRS, KINDS = captions.all_pairs(), captions.KINDS


def judge(classify_azimuth=lambda *_: pytest.fail("no side is asked for")):
    """A judge that names the pair and the kind in the first pixel of each image."""

    def embed(rgb):
        pair, kind = rgb[:, 0, 0, 0].astype(int), rgb[:, 0, 0, 1].astype(int)
        return np.concatenate([np.eye(len(PAIRS))[pair], np.eye(len(KINDS))[kind]], axis=1)

    both = len(PAIRS) + len(KINDS)
    pairs = Candidates("pairs", np.eye(len(PAIRS), both), lambda p: PAIRS.index(prompt_pair(p)))
    kinds = Candidates(
        "kinds",
        np.eye(len(KINDS), both, len(PAIRS)),
        lambda p: KINDS.index(prompt_pair(p)[1]),
    )
    return Judge("parrot", "0" * 64, 2, embed, pairs, kinds, classify_azimuth)


def named_as(pair, kind, right):
    """Eight images, of which `right` are named correctly."""
    views = np.zeros((8, 2, 2, 3))
    views[:right, 0, 0, :2] = PAIRS.index((pair, kind)), KINDS.index(kind)
    return views


def test_each_number_counts_its_own_views():
    views = AssetViews(*(named_as("blue", "robot", right) for right in (6, 4, 1)))
    asked_of = []

    def classify_azimuth(rgb, kind):
        asked_of.append((rgb is views.albedo, set(kind.tolist())))
        return np.array([0, 1, 0, 3, 4, 0, 6, 7])

    scored = score.score_views(judge(classify_azimuth), "a blue robot, please", views)
    assert scored == Score(0.75, 0.5, 0.125, 3)
    assert asked_of == [(True, {KINDS.index("robot")})]


def test_what_has_no_front_has_no_count_of_fronts():
    views = AssetViews(*(named_as("red", "rocket", 8),) * 3)
    scored = score.score_views(judge(), "a red rocket", views)
    assert scored == Score(1.0, 1.0, 1.0, None)
    with_front = Score(0.0, 0.5, 0.0, 2)
    assert score.means([scored, with_front]) == Score(0.5, 0.75, 0.5, 2.0)
    assert score.means([scored]).fronts is None


def scored_run(prompt, seed, albedo, fronts=None):
    return ScoredRun(prompt, seed, "w", False, 2, 1.0, {}, Score(albedo, 0.5, 0.0, fronts))


def test_standard_errors_are_over_prompts_after_seeds():
    """Prompt means 0.25, 0.75, 0.5: of standard deviation 0.25; the error is that over sqrt(3)."""
    runs = [scored_run(*run) for run in (("a", 0, 0.0), ("a", 1, 0.5), ("b", 0, 0.75, 1))]
    runs.append(scored_run("c", 0, 0.5))
    errors = score.standard_errors(runs)
    assert errors == Score(round(0.25 / 3**0.5, 4), 0.0, 0.0, None)
    assert score.standard_errors(runs[:2]) == Score(None, None, None, None)


def tiny_scene():
    scene = make_scene(SceneOptions(field="grid", grid_resolution=5, fine_samples=8))
    return scene, scene.init(jax.random.key(0))


def test_an_assets_views_differ_only_in_light_and_texture():
    views = asset_views(*tiny_scene(), 0, size=12)
    chex.assert_shape(views, (8, 12, 12, 3))
    for kind in views:
        np.testing.assert_allclose(kind[:, 0, 0], np.full((8, 3), BACKGROUND), atol=1e-5)
    albedo, shaded, textureless = (kind[:, 6, 6] for kind in views)
    assert (shaded < albedo - 0.01).all(), "some light is always lost"
    gray = np.array(captions.GRAY)
    # The field begins middle gray: under the same light, white times GRAY is that times 2 GRAY.
    np.testing.assert_allclose(textureless, shaded / albedo * gray, rtol=0.02)
    assert jnp.isfinite(textureless).all()


def test_a_run_is_seen_from_where_it_was_trained():
    scene, params = tiny_scene()
    zero = jnp.int32(0)
    state = TrainState(zero, {"scene": params}, None, zero, zero)
    far = Config(camera=CameraRanges(distance=(4.0, 6.0), fov_deg=(20.0, 40.0)))
    seen = views_of_run(SavedRun(far, scene, state), 12)
    expected = asset_views(scene, params, 0, 12, Orbit(5.0, 30.0))
    chex.assert_trees_all_equal(seen, expected)
    default = views_of_run(SavedRun(Config(), scene, state), 12)
    chex.assert_trees_all_equal(default, asset_views(scene, params, 0, 12))


def test_the_untrained_scene_is_scored_over_all_prompts(monkeypatch):
    scene, params = tiny_scene()
    seen = []

    def views_of_run(run, size):
        seen.append((run.state.step, run.state.scene_params, size))
        return AssetViews(*(named_as("blue", "robot", right) for right in (8, 6, 4)))

    monkeypatch.setattr(score, "views_of_run", views_of_run)
    state = TrainState(
        jnp.int32(7), {"scene": jax.tree.map(jnp.zeros_like, params)}, None, None, None
    )
    run = SavedRun(Config(), scene, state)
    floor = score.score_untrained(judge(lambda *_: np.zeros(8)), run, ["a blue robot", "a red bed"])
    assert floor == Score(0.5, 0.375, 0.25, 8.0)
    assert seen[0][0] == 0 and seen[0][2] == 2
    chex.assert_trees_all_equal(seen[0][1], params)


def test_a_scored_run_tells_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "score_views", lambda *_: Score(1.0, 1.0, 1.0, 1))
    monkeypatch.setattr(score, "views_of_run", lambda *_: None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "seconds": 61.5, "device_seconds": 62}\n')
    config = Config(train=TrainOptions(prompt="a cyan mug", seed=3, steps=7))
    state = TrainState(np.int32(7), None, None, None, None)
    run = score.score_run(judge(), tmp_path, SavedRun(config, None, state))
    assert run[:-1] == ("a cyan mug", 3, str(tmp_path), True, 7, 61.5, {"steps": 7})
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    assert score.score_run(judge(), tmp_path, SavedRun(config, None, state)).seconds is None
