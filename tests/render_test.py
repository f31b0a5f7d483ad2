import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamfusion_jax import render
from dreamfusion_jax.nerf.scene import SceneOptions, lit_view, make_scene

SCENE = make_scene(SceneOptions(width=8, depth=1, proposal_samples=8, fine_samples=8))


def test_a_picture_taken_a_few_rows_at_a_time_is_the_same_picture(monkeypatch):
    params = SCENE.init(jax.random.key(0))
    view = lit_view(render.picture_camera(33.0, 21.0), jnp.array(render.WHITE))
    whole = SCENE.render(params, view, 12, 12, 0, None)
    monkeypatch.setattr(render, "_CHUNK_RAYS", 3 * 12)
    chunked = render.render_image(SCENE, params, view, 12, jnp.int32(0))
    for name in ("image", "opacity", "depth", "normals"):
        chex.assert_trees_all_close(getattr(chunked, name), getattr(whole, name), atol=1e-3)


def test_rows_of_a_chunk_divide_the_picture():
    for size in (1, 7, 64, 96, 100, 128, 509, 2048):
        rows = render._chunk_rows(size)
        assert size % rows == 0 and (rows == 1 or rows * size <= render._CHUNK_RAYS)


def test_colours_round_to_the_nearest_byte():
    np.testing.assert_array_equal(
        render.to_uint8(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 1.4 / 255])), [0, 0, 128, 255, 255, 1]
    )
