import numpy as np

from dreamfusion_jax.mesh.drawing import draw
from dreamfusion_jax.nerf.cameras import orbit_camera
from tests.mesh.conftest import RADIUS, colored

SIZE = 64


def test_a_ball_is_seen_as_the_disc_of_its_horizon(textured):
    camera = orbit_camera(20.0, 30.0, 2.0, 60.0)
    drawing = draw(textured, camera, SIZE)
    # sin(angle of the horizon) = radius / distance
    horizon = float(camera.focal) * np.tan(np.arcsin(RADIUS / 2.0)) * SIZE
    np.testing.assert_allclose(drawing.covered.sum(), np.pi * horizon**2, rtol=0.03)
    np.testing.assert_allclose(np.linalg.norm(drawing.points, axis=-1), RADIUS, atol=0.01)
    np.testing.assert_allclose(drawing.albedo, colored(drawing.points), atol=0.02)
    np.testing.assert_allclose(drawing.normals, drawing.points / RADIUS, atol=0.05)
    position = np.asarray(camera.pose)[:, 3]
    assert (drawing.points @ position).min() > 0.0, "of a solid only the near side is seen"
