"""The GLB as three.js shows it: our colors and our normals, by none of our code."""

import numpy as np
import pytest

from dreamfusion_jax.mesh import formats, texture
from dreamfusion_jax.mesh.drawing import draw
from dreamfusion_jax.nerf.cameras import orbit_camera
from tests import three_viewer
from tests.mesh.normal_map_test import bare, mapped, ripples  # noqa: F401, fixtures

CAMERAS = [orbit_camera(azimuth_deg, 20.0, 2.75, 30.0) for azimuth_deg in (0.0, 130.0)]
SIZE = 96


def inner(drawing):
    """What both surely cover: pixels away from the outline."""
    covered = drawing.covered
    return (
        covered
        & np.roll(covered, 2, 0)
        & np.roll(covered, -2, 0)
        & np.roll(covered, 2, 1)
        & np.roll(covered, -2, 1)
    )


def test_another_reader_shows_the_colors_of_the_texture(mapped):  # noqa: F811
    shown = three_viewer.render(formats.glb_bytes(mapped), CAMERAS, SIZE)
    for camera, image in zip(CAMERAS, shown, strict=True):
        drawing = draw(mapped, camera, SIZE)
        ours = np.zeros((SIZE, SIZE, 3))
        ours[drawing.covered] = drawing.albedo
        difference = (image - ours)[inner(drawing)]
        # Of this light three takes away what a dielectric would reflect, and reflects nothing.
        assert np.abs(difference.mean(axis=0)).max() * 255 < 2.5
        assert np.abs(difference).mean() * 255 < 2.5


@pytest.mark.parametrize("kind", ["mapped", "bare"])
def test_another_reader_shows_the_normals_of_the_map(kind, request):
    mesh = request.getfixturevalue(kind)
    shown = three_viewer.render(formats.glb_bytes(mesh), CAMERAS, SIZE, normals=True)
    for camera, image in zip(CAMERAS, shown, strict=True):
        drawing = draw(mesh, camera, SIZE)
        normals = np.zeros((SIZE, SIZE, 3))
        normals[drawing.covered] = drawing.normals @ np.asarray(camera.pose)[:, :3]
        read = texture.normal_map._unit(2.0 * image - 1.0)
        cosine = np.sum(read * normals, axis=-1)[inner(drawing)]
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 1.5
