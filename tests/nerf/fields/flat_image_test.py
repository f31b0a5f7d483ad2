"""A flat image in a scene's place."""

import chex
import jax
import jax.numpy as jnp
import pytest

from dreamfusion_jax.nerf.cameras import orbit_camera
from dreamfusion_jax.nerf.fields.flat_image import image_scene
from dreamfusion_jax.nerf.view import albedo_view, lit_view

_FLAT = image_scene(6)
_VIEWS = [
    make(orbit_camera(azimuth, 20.0, 2.0, 45.0), jnp.zeros(3))
    for make, azimuth in ((albedo_view, 0.0), (lit_view, 200.0))
]


def _draw(params, view, size=6, key=None):
    return _FLAT.render(params, view, size, size, jnp.int32(3), key)


def test_image_and_gradient_are_the_parameters_for_any_camera():
    params = _FLAT.init(jax.random.key(0))
    pixels = jax.random.normal(jax.random.key(1), (6, 6, 3))
    params = {"field": {"image": params["field"]["image"] + pixels}}
    for view in _VIEWS:
        image, pull = jax.vjp(lambda params, view=view: _draw(params, view).image, params)
        chex.assert_trees_all_equal(image, 0.5 + pixels)
        chex.assert_trees_all_equal(pull(pixels)[0], {"field": {"image": pixels}})
    assert (_draw(params, _VIEWS[0], key=jax.random.key(2)).opacity == 1.0).all()


def test_another_size_is_interpolated():
    params = {"field": {"image": jnp.full((6, 6, 3), 0.25).at[:3].set(0.75)}}
    image = _draw(params, _VIEWS[0], size=3).image
    assert image.shape == (3, 3, 3)
    chex.assert_trees_all_close(image[0], jnp.full((3, 3), 0.75), atol=0.05)
    chex.assert_trees_all_close(jnp.mean(image), 0.5, atol=1e-6)


def test_there_is_nothing_solid_in_it():
    params = _FLAT.init(jax.random.key(0))
    for ask in (_FLAT.query, _FLAT.normals):
        with pytest.raises(ValueError, match="no surface"):
            ask(params, jnp.zeros(3), jnp.int32(0))
