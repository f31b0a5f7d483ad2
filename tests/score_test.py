"""What is measured on an asset, with a judge that says what it is told."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax import score
from dreamfusion_jax.errors import UserError
from dreamfusion_jax.nerf.scene import SceneOptions, make_scene
from dreamfusion_jax.score import AssetViews, Score
from dreamfusion_jax.toybox import captions
from dreamfusion_jax.toybox.judge import Judge

PAIRS, KINDS = captions.all_pairs(), captions.KINDS
# Each picture's first pixel says as which pair, and as which kind, it is to be named.
JUDGE = Judge(
    embed=lambda rgb: np.concatenate(
        [
            np.eye(len(PAIRS))[rgb[:, 0, 0, 0].astype(int)],
            np.eye(len(KINDS))[rgb[:, 0, 0, 1].astype(int)],
        ],
        axis=1,
    ),
    subjects=np.eye(len(PAIRS), len(PAIRS) + len(KINDS)),
    kinds=np.eye(len(KINDS), len(PAIRS) + len(KINDS), len(PAIRS)),
)


def named_as(pair, kind, right):
    """Eight pictures, `right` of them named right and the others as something else."""
    views = np.zeros((8, 2, 2, 3))
    views[:right, 0, 0, :2] = PAIRS.index((pair, kind)), KINDS.index(kind)
    return views


def test_each_number_counts_its_own_views():
    views = AssetViews(*(named_as("blue", "robot", right) for right in (6, 4, 1)))
    asked_of = []

    def name_side(rgb, kind):
        asked_of.append((rgb is views.albedo, set(kind.tolist())))
        return np.array([0, 1, 0, 3, 4, 0, 6, 7])

    scored = score.score_views(JUDGE, name_side, "a blue robot, please", views)
    assert scored == Score(0.75, 0.5, 0.125, 3)
    assert asked_of == [(True, {KINDS.index("robot")})]


def test_what_has_no_front_has_no_count_of_fronts():
    views = AssetViews(*(named_as("red", "rocket", 8),) * 3)
    scored = score.score_views(JUDGE, lambda *_: pytest.fail("no side"), "a red rocket", views)
    assert scored == Score(1.0, 1.0, 1.0, None)
    with_front = Score(0.0, 0.5, 0.0, 2)
    assert score.totals([scored, with_front]) == Score(0.5, 0.75, 0.5, 2.0)._asdict()
    assert score.totals([scored])["front_views"] is None


@pytest.mark.parametrize("prompt", ["a chair", "a mauve chair", "a red or blue chair", ""])
def test_a_prompt_that_cannot_be_judged_is_refused(prompt):
    with pytest.raises(UserError, match="colour and kind"):
        score.prompt_pair(prompt)


def test_the_three_views_of_an_asset_differ_in_light_and_texture_alone(monkeypatch):
    monkeypatch.setattr(score.dataset, "IMAGE_SIZE", 12)
    scene = make_scene(SceneOptions(field="grid", grid_resolution=5, fine_samples=8))
    params = scene.init(jax.random.key(0))
    params["field"] = jax.tree.map(lambda x: x, params["field"])
    views = score.asset_views(scene, params, 0)
    chex.assert_shape(views, (8, 12, 12, 3))
    for kind in views:
        np.testing.assert_allclose(kind[:, 0, 0], np.full((8, 3), score.BACKGROUND), atol=1e-5)
    albedo, shaded, textureless = (kind[:, 6, 6] for kind in views)
    assert (shaded < albedo - 0.01).all(), "some light is always lost"
    grey = np.array(captions.GREY)
    # The field begins middle grey: under the same light, white times GREY is that times 2 GREY.
    np.testing.assert_allclose(textureless, shaded / albedo * grey, rtol=0.02)
    assert jnp.isfinite(textureless).all()
