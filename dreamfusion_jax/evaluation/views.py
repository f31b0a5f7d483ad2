"""The views that are judged and that the gallery shows: an asset from all around.

All have one elevation, as for the paper's R-precision (Poole et al. 2022, section 4). There are
three kinds: `albedo` and `shaded` are Color in its table, without and with light; `textureless` is
its Geo.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamfusion_jax.config.flags import is_flat
from dreamfusion_jax.nerf.cameras import Camera
from dreamfusion_jax.nerf.scene import Scene
from dreamfusion_jax.nerf.view import View, albedo_view, lit_view
from dreamfusion_jax.rendering.images import Orbit, render_image, training_orbit
from dreamfusion_jax.runs.checkpoint import SavedRun, load_run
from dreamfusion_jax.runtime.errors import UserError
from dreamfusion_jax.runtime.files import AnyPath
from dreamfusion_jax.toybox import captions, dataset

ELEVATION_DEG = 30.0
AZIMUTHS_DEG = tuple(45.0 * i for i in range(8))
FRONT_LEFT_DEG = 45.0
BACKGROUND = (0.8, 0.8, 0.8)
# The albedo of textureless views, whose background is to be the same as the others'.
_GRAY = np.array(captions.GRAY, np.float32)


class AssetViews(NamedTuple):
    """One asset from the azimuths A; each [A, S, S, 3] in [0, 1].

    Attributes:
      albedo: its colors alone.
      shaded: the same under a light.
      textureless: gray under that light.
    """

    albedo: np.ndarray
    shaded: np.ndarray
    textureless: np.ndarray


def open_run(workdir: AnyPath) -> SavedRun:
    """Loads the asset in a work folder. Raises a UserError for a flat image, which has no sides."""
    run = load_run(workdir)
    if is_flat(run.config):
        raise UserError(f"{workdir} holds a flat image; there are no sides to judge.")
    return run


def views_of_run(run: SavedRun, size: int = dataset.IMAGE_SIZE) -> AssetViews:
    """Renders the judged views, of side `size` in pixels, from the middle of the run's cameras."""
    orbit = training_orbit(run.config.camera)
    return asset_views(run.scene, run.state.scene_params, int(run.state.step), size, orbit)


def asset_views(
    scene: Scene,
    params: Any,
    step: int,
    size: int = dataset.IMAGE_SIZE,
    orbit: Orbit = Orbit(),  # noqa: B008 (a tuple of numbers)
) -> AssetViews:
    """Renders the judged views of a scene after `step` steps."""
    cameras = [orbit.camera(azimuth_deg, ELEVATION_DEG) for azimuth_deg in AZIMUTHS_DEG]
    args = scene, params, step, size
    return AssetViews(*(_render(*args, cameras, kind) for kind in AssetViews._fields))


def front_left(run: SavedRun, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders two images [size, size, 3] in [0, 1] from the front left: shaded, textureless."""
    cameras = [training_orbit(run.config.camera).camera(FRONT_LEFT_DEG, ELEVATION_DEG)]
    args = run.scene, run.state.scene_params, int(run.state.step), size
    shaded, textureless = (_render(*args, cameras, kind) for kind in ("shaded", "textureless"))
    return shaded[0], textureless[0]


def _render(
    scene: Scene, params: Any, step: int, size: int, cameras: Sequence[Camera], kind: str
) -> np.ndarray:
    views = [_VIEWS[kind](camera) for camera in cameras]
    images = np.stack([render_image(scene, params, view, size, step).image for view in views])
    return images * _GRAY if kind == "textureless" else images


def _albedo(camera: Camera) -> View:
    return albedo_view(camera, jnp.array(BACKGROUND))


def _lit(camera: Camera, textureless: bool) -> View:
    background = jnp.array(BACKGROUND / _GRAY if textureless else BACKGROUND)
    return lit_view(camera, background, ambient=0.4, diffuse=0.6, textureless=textureless)


_VIEWS: Mapping[str, Callable[[Camera], View]] = {
    "albedo": _albedo,
    "shaded": functools.partial(_lit, textureless=False),
    "textureless": functools.partial(_lit, textureless=True),
}
