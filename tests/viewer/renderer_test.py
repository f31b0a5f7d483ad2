"""Every mode shows its part of a render; images that are out of date are abandoned."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamfusion_jax.nerf.scene import Render, SceneOptions, make_scene
from dreamfusion_jax.rendering import images
from dreamfusion_jax.viewer.renderer import MODES, Renderer, ViewSettings, make_view
from dreamfusion_jax.viewer.window import Window

WINDOW = Window((0.5, 0.5, 0.5, 0.5), (0.0, -3.0, 0.0), 0.8, 10, 20)
GREEN = (0.0, 1.0, 0.0)


def plain(params, view, height, width, step, key):
    """Half opaque everywhere; its color tells the background, its red the step."""
    shape = (height, width)
    image = jnp.broadcast_to(view.background, (*shape, 3)).at[..., 0].set(step / 255.0)
    normals = jnp.broadcast_to(jnp.array([1.0, 0.0, -1.0]), (*shape, 3)) * (view.diffuse > 0)
    return Render(image, jnp.full(shape, 0.6), jnp.full(shape, 2.0), normals, {})


SCENE = make_scene(SceneOptions())._replace(render=plain)


@pytest.fixture
def renderer(monkeypatch):
    monkeypatch.setattr(images, "_TILE_CPU", 8)
    monkeypatch.setattr(images, "_TILE", 8)
    return Renderer(SCENE)


@pytest.mark.parametrize(
    "mode, color",
    [
        ("shaded", (7, 255, 0)),
        ("albedo", (7, 255, 0)),
        ("normals", (255, 128, 0)),
        ("opacity", (153, 153, 153)),
        ("depth", (153, 153, 153)),  # the nearest there is: as light as it is opaque
    ],
)
def test_modes(renderer, mode, color):
    drawn_image = renderer.draw(ViewSettings(mode, WINDOW, GREEN), (10, 20), {}, 7, lambda: True)
    assert drawn_image.shape == (10, 20, 3) and drawn_image.dtype == np.uint8
    assert (drawn_image == color).all()


def test_only_lit_modes_are_lit_and_backgrounds_may_be_learned():
    lit = {mode: bool(make_view(ViewSettings(mode, WINDOW, GREEN)).diffuse > 0.0) for mode in MODES}
    assert lit == {m: m in ("shaded", "normals") for m in MODES}
    assert bool(make_view(ViewSettings("albedo", WINDOW, GREEN)).solid_background)
    assert not bool(make_view(ViewSettings("albedo", WINDOW, None)).solid_background)


def test_an_unwanted_image_is_abandoned_after_its_tile(renderer):
    """10 x 20 pixels are six tiles of 8."""
    calls = []
    wanted = lambda: calls.append(1) or len(calls) < 3  # noqa: E731
    assert renderer.draw(ViewSettings("albedo", WINDOW, GREEN), (10, 20), {}, 0, wanted) is None
    assert len(calls) == 3


def test_slow_renders_lower_the_pixels_of_a_moving_camera(renderer):
    renderer.compile({})
    fast = renderer.moving_pixels("albedo")
    assert np.isfinite(fast) and fast > 0.0
    for _ in range(30):  # a second for each pixel, again and again
        renderer._learn_speed("albedo", 1.0)
    assert renderer.moving_pixels("albedo") < min(fast, 1.0)
