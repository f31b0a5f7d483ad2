"""How much of what is thin an autoencoder keeps: poles, handles, legs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from dreamfusion_jax.nerf import cameras
from dreamfusion_jax.toybox import captions, objects, shapes

KINDS = ("chair", "lamp", "mug", "robot", "table", "teapot", "umbrella", "windmill")
_THIN, _REST, _BACKGROUND = np.array([(0.85, 0.1, 0.1), (0.15, 0.6, 0.2), (0.6, 0.6, 0.6)])
_THIN_RADIUS = 0.07


def thin_part_iou(
    reconstruct: Callable[[np.ndarray], np.ndarray], size: int, views: int = 16, seed: int = 0
) -> dict[str, float]:
    """Measures, for each of KINDS, the intersection over union of the pixels of thin parts.

    Thin parts are red, others green, the background gray, all unlit: a pixel shows the color that
    it is nearest to.

    Args:
      reconstruct: [N, H, W, 3] uint8 -> what the autoencoder makes of it.
      size: pixels a side.
      views: images of each kind.
    """
    scores = {}
    for kind in KINDS:
        image = _render_painted(kind, size, views, seed)
        before, after = _is_thin_color(image), _is_thin_color(reconstruct(image))
        scores[kind] = float((before & after).sum() / np.maximum((before | after).sum(), 1))
    return scores


def is_thin(part: shapes.Part) -> bool:
    """Returns whether a part is a pole, a rod, a leg or a handle."""
    if part.shape == "cone":
        return max(part.size[:2]) + part.rounding <= _THIN_RADIUS < part.size[2]
    if part.shape == "torus":
        return part.size[1] <= _THIN_RADIUS
    if part.shape == "box":
        small, middle, long = sorted(part.size)
        return middle + part.rounding <= _THIN_RADIUS < long
    return False


def _render_painted(kind: str, size: int, views: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, captions.KINDS.index(kind)])
    built = [objects.build(rng, captions.Subject(kind, "red", None)) for _ in range(views)]
    painted = [
        [part._replace(color=tuple(_THIN if is_thin(part) else _REST)) for part in parts]
        for parts in built
    ]
    solids = [shapes.stack(parts) for parts in painted]
    batch = shapes.Solids(*(np.stack(column) for column in zip(*solids, strict=True)))
    angles = zip(rng.uniform(0, 360, views), rng.uniform(-5, 40, views), strict=True)
    camera = jax.tree.map(
        lambda *leaves: np.stack(leaves),
        *[cameras.orbit_camera(a, e, 2.75, 47.0) for a, e in angles],
    )
    eye, one = np.asarray(camera.pose[:, :, 3]), np.ones(views, np.float32)
    background = np.broadcast_to(_BACKGROUND.astype(np.float32), (views, 2, 3))
    names = tuple(part.shape for part in built[0])
    light = shapes.Light(eye, one, 0 * one)
    rgb = shapes.render_batch(names, batch, camera, light, background, size)
    return np.round(np.asarray(rgb) * 255.0).astype(np.uint8)


def _is_thin_color(image: np.ndarray) -> np.ndarray:
    palette = np.stack([_THIN, _REST, _BACKGROUND])
    distances = np.linalg.norm(image[..., None, :] / 255.0 - palette, axis=-1)
    return np.argmin(distances, axis=-1) == 0
