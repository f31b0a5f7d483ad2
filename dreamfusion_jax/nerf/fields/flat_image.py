"""A flat image in a scene's place: the generator is the identity (`--field=image`).

Its parameters are its pixels, so distillation shows what the prior and its settings pull towards,
without a renderer in between (Poole et al. 2023, section 3.1 and figure 2).
"""

from __future__ import annotations

from typing import NoReturn

import jax
import jax.numpy as jnp

from dreamfusion_jax.nerf.fields.field import Params
from dreamfusion_jax.nerf.scene import Render, Scene
from dreamfusion_jax.nerf.view import View


def image_scene(size: int) -> Scene:
    """Makes a flat image [size, size], initially middle gray, the same for every camera.

    Its pixels are not bounded; display code clips them to [0, 1]. A render of another size is
    interpolated.
    """

    def init(key: jax.Array) -> Params:
        return {"field": {"image": jnp.full((size, size, 3), 0.5)}}

    def render(
        params: Params,
        view: View,
        height: int,
        width: int,
        step: jax.Array,
        key: jax.Array | None,
        half_size: jax.Array | None = None,
    ) -> Render:
        image = params["field"]["image"]
        if image.shape[:2] != (height, width):
            image = jax.image.resize(image, (height, width, 3), "linear")
        return Render(
            image=image,
            opacity=jnp.ones((height, width)),
            depth=jnp.zeros((height, width)),
            normals=jnp.zeros((height, width, 3)),
            regularizers={},
        )

    def no_surface(params: Params, points: jax.Array, step: jax.Array) -> NoReturn:
        raise ValueError("a flat image has no surface")

    return Scene(init, render, no_surface, no_surface, flat=True)
